"""Check that a model in memory has all its weights, and that quantised weights have scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.module_tree import modules_of
from qwenlab.checkpoint.weights.in_files import where_stored
from qwenlab.checkpoint.weights.shards import shorten
from qwenlab.errors import HalfLoadedModel

RAW = 8.0
"""A matrix with a larger median magnitude is considered FP8 or integer codes that were read without their scales.

FP8 codes cover the range up to 448, with medians of several tens. Trained matrices have medians of 0.001 to 1.
"""

_SAMPLE = 16
"""Number of values of each matrix that are checked."""

_SCALES = ("scale", "absmax", "quant_state", "zero_point", "SCB")
"""Name parts of the tensors that convert stored codes into weights."""

_UNQUANTISED_PACKAGES = ("torch.nn.", "transformers.models.")
"""Packages of layers that compute with their weights as stored. Layers of other packages scale them themselves."""


def require_loaded(model: nn.Module) -> None:
    """Check that every weight of a model has values, and that quantised weights have scales.

    Raises HalfLoadedModel, with the names of the tensors: for a weight on the meta device that no hook of accelerate
    loads, a quantisation in the config that transformers skipped, and FP8 or integer codes in a layer without scales.
    """
    modules = modules_of(model)
    owned = list(_tensors(modules))
    if absent := _absent(model, owned):
        raise HalfLoadedModel(
            f"{type(model).__name__} has {len(absent)} weights on the meta device, so without values, and no hook of "
            f"accelerate loads them:\n  {shorten(absent)}\nLoad the model again, with enough memory or with "
            "device_map='auto', which offloads the weights that do not fit."
        )
    if skipped := _skipped_quantisation(modules, owned):
        raise HalfLoadedModel(
            f"The config of {type(model).__name__} has the quantisation {skipped!r}, but transformers loaded the "
            "weights without it, as if the codes were plain weights.\nOpen the unquantised or the FP8 release, or "
            "install the package that transformers needs for this one. If the weights are plain, as after from_config, "
            "delete config.quantization_config."
        )
    raw = f"matrices whose median magnitude is above {RAW:g}, like FP8 codes that were read without their scales"
    for problem, find in (("weights that are codes without scales", _unscaled), (raw, _raw)):
        if names := find(owned):
            raise HalfLoadedModel(
                f"{type(model).__name__} has {len(names)} {problem}:\n  {shorten(names)}\n"
                "Load the checkpoint with the quantization_config that it was published with."
            )


OwnedTensor = tuple[str, nn.Module, torch.Tensor]
"""Path, owner and value of a parameter or buffer."""


def _tensors(modules: list[tuple[str, nn.Module]]) -> Iterator[OwnedTensor]:
    for path, module in modules:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, module, tensor


def _absent(model: nn.Module, owned: list[OwnedTensor]) -> list[str]:
    """Tensors without values that no hook loads when their layer runs."""
    absent = [(path, module) for path, module, tensor in owned if tensor.is_meta]
    loaded = {id(part) for module in model.modules() for part in _offloaded(module)} if absent else set()
    return [path for path, module in absent if id(module) not in loaded]


def _offloaded(module: nn.Module) -> Iterable[nn.Module]:
    """The modules whose weights accelerate loads before this module runs: none, the module, or its submodules too."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    if not any(getattr(each, "offload", False) for each in hooks):
        return ()
    return module.modules() if any(getattr(each, "place_submodules", False) for each in hooks) else (module,)


def _skipped_quantisation(modules: list[tuple[str, nn.Module]], owned: list[OwnedTensor]) -> str | None:
    """The quantisation in the config, if no part of the model was loaded with it."""
    parts = [module for _, module in modules if isinstance(module, PreTrainedModel)]
    configs = (vars(part.config).get("quantization_config") for part in parts)
    named: Any = next((config for config in configs if config), None)
    if named is None or any(getattr(part, "hf_quantizer", None) is not None for part in parts):
        return None
    # The quantizer is an attribute of the outermost model only; in a part of it, the layers show that it was used.
    if any(_scales(module, tensor) for _, module, tensor in owned):
        return None
    return str(named.get("quant_method") if isinstance(named, dict) else getattr(named, "quant_method", None))


def _unscaled(owned: list[OwnedTensor]) -> list[str]:
    """Weights with a one-byte or integer dtype, in a module without scales."""
    return [
        f"{path} ({str(tensor.dtype).removeprefix('torch.')})"
        for path, module, tensor in owned
        if _is_code(tensor.dtype) and _is_matrix(tensor) and not _scales(module, tensor)
    ]


def _is_matrix(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.ndim > 1


def _is_code(dtype: torch.dtype) -> bool:
    return dtype != torch.bool and (dtype.itemsize == 1 or not (dtype.is_floating_point or dtype.is_complex))


def _scales(module: nn.Module, weight: torch.Tensor) -> bool:
    """Whether a layer scales this weight: by another of its tensors, or in the code of its own package."""
    if type(weight.data) is not torch.Tensor or not type(module).__module__.startswith(_UNQUANTISED_PACKAGES):
        return True
    own = (name for name, value in vars(module).items() if isinstance(value, torch.Tensor))
    names = (*module._parameters, *module._buffers, *own, *vars(weight))
    return any(part in name for name in names for part in _SCALES)


@torch.no_grad()
def _raw(owned: list[OwnedTensor]) -> list[str]:
    """Matrices whose values are as large as codes."""
    samples: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = {}
    for path, _, tensor in owned:
        if not _is_matrix(tensor) or tensor.is_meta or _is_code(tensor.dtype) or not tensor.is_contiguous():
            continue
        plain = where_stored(tensor) is None and (type(tensor) is nn.Parameter or type(tensor.data) is torch.Tensor)
        if plain and (step := tensor.numel() // _SAMPLE):
            values = tensor.as_strided((_SAMPLE,), (step,), tensor.storage_offset() + step // 2)
            samples.setdefault((tensor.device, tensor.dtype), {})[path] = values
    raw = []
    for by_path in samples.values():
        medians = torch.stack(list(by_path.values())).float().abs().median(dim=1).values
        raw += [path for path, large in zip(by_path, (medians > RAW).tolist(), strict=True) if large]
    return raw
