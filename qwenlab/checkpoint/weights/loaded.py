"""Whether the weights of a model in memory are all there, and are the numbers that its layers compute with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.weights.shards import some
from qwenlab.errors import HalfLoadedModel

RAW = 8.0
"""Weights of a matrix whose median magnitude is larger are taken for FP8 or integer codes read without their scales.

FP8 codes fill the range up to 448, and their median is some tens. Trained matrices have medians of 0.001 to 1.
"""

_SAMPLE = 16
"""Values of each matrix that are looked at."""

_SCALES = ("scale", "absmax", "quant_state", "zero_point", "SCB")
"""Parts of the names of tensors that turn stored codes into weights."""

_UNQUANTISED_PACKAGES = ("torch.nn.", "transformers.models.")
"""Where the layers come from that compute with the numbers they hold. Those of other packages scale by themselves."""


def require_loaded(model: nn.Module) -> None:
    """Check that every weight of a model has a value, and that quantised ones are scaled.

    It looks at names, devices, dtypes and a few values of each matrix; at no activation.

    Raises HalfLoadedModel, naming tensors: a weight on the meta device that no hook of accelerate loads; a config that
    names a quantisation which transformers skipped; codes of FP8 or integers in a layer without scales.
    """
    held = list(_tensors(model))
    if absent := _absent(model, held):
        raise HalfLoadedModel(
            f"{type(model).__name__} has {len(absent)} weights on the meta device, where they have no values, and no "
            f"hook of accelerate loads them:\n  {some(absent)}\nLoad the model again, with room for all of it or with "
            "device_map='auto', which offloads what does not fit."
        )
    if skipped := _skipped_quantisation(model, held):
        raise HalfLoadedModel(
            f"The config of {type(model).__name__} names the quantisation {skipped!r}, and transformers loaded the "
            "weights without it, as if their codes were plain numbers.\nOpen the unquantised or the FP8 release, or "
            "install what transformers needs for this one. If the weights are plain, as after from_config, delete "
            "config.quantization_config."
        )
    if codes := _unscaled(held):
        raise HalfLoadedModel(
            f"{type(model).__name__} has {len(codes)} weights that are codes without scales:\n  {some(codes)}\n"
            "Load the checkpoint with the quantization_config that it was published with."
        )
    if raw := _raw(held):
        raise HalfLoadedModel(
            f"{type(model).__name__} has {len(raw)} matrices whose median magnitude is above {RAW:g}, like FP8 codes "
            f"that were read without their scales:\n  {some(raw)}\n"
            "Load the checkpoint with the quantization_config that it was published with."
        )


OwnedTensor = tuple[str, nn.Module, torch.Tensor]
"""Path, owner and value of a parameter or buffer."""


def _tensors(model: nn.Module) -> Iterator[OwnedTensor]:
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, module, tensor


def _absent(model: nn.Module, held: list[OwnedTensor]) -> list[str]:
    """Tensors without values that nothing brings when their layer runs."""
    if not any(tensor.is_meta for _, _, tensor in held):
        return []
    brought = {id(part) for module in model.modules() if _offloads(module) for part in _served(module)}
    return [path for path, module, tensor in held if tensor.is_meta and id(module) not in brought]


def _offloads(module: nn.Module) -> bool:
    """Whether a hook of accelerate loads weights before this module runs."""
    return any(getattr(each, "offload", False) for each in _hooks(module))


def _served(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose weights its hook loads: itself, and those below where the hook says so."""
    below = any(getattr(each, "place_submodules", False) for each in _hooks(module))
    yield from module.modules() if below else (module,)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook: Any = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _skipped_quantisation(model: nn.Module, held: list[OwnedTensor]) -> str | None:
    """The quantisation that a config names and that no part of the model was loaded with."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    named = (vars(part.config).get("quantization_config") for part in parts)
    found: Any = next((each for each in named if each), None)
    if found is None or any(getattr(part, "hf_quantizer", None) is not None for part in parts):
        return None
    # The quantizer is an attribute of the outermost model; of a part of it, the layers show that it was at work.
    if any(_scales(module, tensor) for _, module, tensor in held):
        return None
    return str(found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None))


def _unscaled(held: list[OwnedTensor]) -> list[str]:
    """Weights in a dtype of one byte or of integers, in a module that holds nothing to scale them by."""
    return [
        f"{path} ({str(tensor.dtype).removeprefix('torch.')})"
        for path, module, tensor in held
        if _is_code(tensor.dtype) and _is_matrix(tensor) and not _scales(module, tensor)
    ]


def _is_matrix(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.ndim > 1


def _is_code(dtype: torch.dtype) -> bool:
    return dtype != torch.bool and (dtype.itemsize == 1 or not (dtype.is_floating_point or dtype.is_complex))


def _scales(module: nn.Module, weight: torch.Tensor) -> bool:
    """Whether a layer scales this weight: by a tensor beside it, or in code of the package that made the layer."""
    if type(weight.data) is not torch.Tensor or not type(module).__module__.startswith(_UNQUANTISED_PACKAGES):
        return True
    own = (name for name, value in vars(module).items() if isinstance(value, torch.Tensor))
    names = (*module._parameters, *module._buffers, *own, *vars(weight))
    return any(part in name for name in names for part in _SCALES)


@torch.no_grad()
def _raw(held: list[OwnedTensor]) -> list[str]:
    """Matrices whose values are of the size of codes."""
    samples: dict[torch.device, dict[str, torch.Tensor]] = {}
    for path, _, tensor in held:
        plain = not (tensor.is_meta or _is_code(tensor.dtype)) and type(tensor.data) is torch.Tensor
        if plain and _is_matrix(tensor) and tensor.is_contiguous() and tensor.numel() >= _SAMPLE:
            values = tensor.view(-1)
            step = len(values) // _SAMPLE
            samples.setdefault(tensor.device, {})[path] = values[step // 2 :: step][:_SAMPLE].float()
    found = []
    for of_device in samples.values():
        medians = torch.stack(list(of_device.values())).abs().median(dim=1).values
        found += [path for path, large in zip(of_device, (medians > RAW).tolist(), strict=True) if large]
    return found
