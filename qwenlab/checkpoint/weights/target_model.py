"""Load the target model: text stack and lm_head of a checkpoint, as a causal language model of transformers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.weights.layout import FP8_BLOCK, Shape, expected, misfits
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.checkpoint.weights.mtp_weights import mtp_prefix
from qwenlab.checkpoint.weights.shards import Weights, shorten
from qwenlab.checkpoint.weights.stored_format import check_quantisation, is_of_quantisation
from qwenlab.errors import BadArgument, BrokenWeights, UnknownQuantization, UnusedWeights, UnusedWeightsWarning

_DOWNLOAD_AGAIN = "Download config.json and the shards again, from the same revision."
_OURS = (None, "fp8")  # quantisations whose tensor names and shapes `layout` knows


def check_target(weights: Weights, config: TextConfig, *, strict: bool = False) -> None:
    """Compare the tensors in the files with those that the config describes; reads only the headers.

    Raises BrokenWeights for tensors that are missing, have another shape, or are not stored in the format of the
    config, and UnknownQuantization. Unused tensors give a warning, or raise UnusedWeights when strict. For
    quantisations other than FP8, `load_target` checks the model that transformers loaded.
    """
    shapes = expected(_fused(weights, config), weights.tensors, config.weight_block or FP8_BLOCK)
    check_quantisation(weights, config, [name for name in shapes if not is_of_quantisation(name)])
    if config.quantization not in _OURS:
        return
    if wrong := misfits(shapes, weights.tensors):
        raise BrokenWeights(
            f"The shards in {weights.folder} do not match the config.json:\n  {shorten(wrong)}\n{_DOWNLOAD_AGAIN}"
        )
    family = config.family
    # A tied lm_head may still be stored.
    known = (mtp_prefix(weights, config) or "mtp.", family.vision_prefix, f"{family.head}.")
    if unused := [name for name in weights.tensors if name not in shapes and not name.startswith(known)]:
        _report_unused(unused, weights, strict)


def _fused(weights: Weights, config: TextConfig) -> dict[str, Shape]:
    """Shapes of the target model's tensors by their names in these files, with fused experts."""
    return {name: shape for stored in stored_names(weights, config).values() for name, shape in stored.items()}


def stored_names(weights: Weights, config: TextConfig) -> dict[str, dict[str, Shape]]:
    """Return for each parameter of the causal language model the names and shapes of its tensors in these files.

    There is one tensor, or several to concatenate. The experts of a layer count as one. The files may have the prefix
    of a root config with a text config: transformers saves them so.
    """
    family = config.family
    built = family.root_prefix if config.is_root else family.text_prefix
    has_root = any(name.startswith(family.root_prefix) for name in weights.tensors)
    prefix = family.root_prefix if has_root else family.text_prefix
    names: dict[str, dict[str, Shape]] = {}
    for tensor in tensors(config):
        if tensor.part not in ("vision", "mtp"):
            in_stack, rest = tensor.name.startswith(built), tensor.name.removeprefix(built)
            name = prefix + rest if in_stack else tensor.name
            parameter = family.text_prefix + rest if in_stack else tensor.name
            names[parameter] = _as_stored(name, tensor.shape, weights, config)
    return names


def _as_stored(name: str, shape: Shape, weights: Weights, config: TextConfig) -> dict[str, Shape]:
    """Names and shapes in these files of one tensor of the model; transformers renames and joins them as it loads."""
    deltanet, others = config.family.deltanet, (name.replace(*pair) for pair in config.family.renamed)
    name = next((other for other in others if other in weights.tensors), name)
    mixer, _, rest = name.partition(f".{deltanet.convolution}.")
    parts = deltanet.separate_convolutions(config) if rest else {}
    apart = {f"{mixer}.{part}.{rest}": (channels, *shape[1:]) for part, channels in parts.items()}
    if not apart or not apart.keys() <= weights.tensors.keys():
        return {name: shape}
    stored = {part: weights.tensors[part].shape for part in apart}  # transformers saves parts of equal size
    joined = (sum(rows for rows, *_ in stored.values()), *shape[1:])
    return stored if joined == shape and {each[1:] for each in stored.values()} == {shape[1:]} else apart


def _report_unused(unused: list[str], weights: Weights, strict: bool) -> None:
    message = f"{weights.folder} contains tensors that no part of the model uses:\n  {shorten(unused)}\n"
    if strict:
        raise UnusedWeights(f"{message}Use strict=False to open the checkpoint without them, with a warning.")
    warnings.warn(f"{message}The model may lack a part of the checkpoint.", UnusedWeightsWarning, stacklevel=4)


def load_target(
    weights: Weights,
    *,
    quantised: bool,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    **implementations: str | None,
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from the folder's safetensors, in eval mode; never remote code, never a pickle.

    quantised        whether config.json has a quantisation
    implementations  `attn_implementation` and `experts_implementation` of transformers

    Raises BrokenWeights if transformers drew a missing weight at random or did not read tensors of a quantised layer,
    UnknownQuantization if it lacks a package for the quantisation, and HalfLoadedModel.
    """
    if device is not None and device_map is not None:
        raise BadArgument(
            "Got both device and device_map.\nUse device for one device, or device_map to split the model."
        )
    options = {"device_map": {"": device} if device is not None else device_map, **implementations}
    options = {name: value for name, value in options.items() if value is not None}
    model, info = _from_pretrained(weights, dtype=as_dtype(dtype), **options)
    if missing := sorted(info["missing_keys"]):
        raise BrokenWeights(
            f"transformers found no weights in {weights.folder} for\n  {shorten(missing)}\nand drew them at random.\n"
            f"{_DOWNLOAD_AGAIN}"
        )
    unread = sorted(name for name in info["unexpected_keys"] if is_of_quantisation(name))
    if quantised and unread:
        raise BrokenWeights(
            f"transformers did not read tensors of quantised layers in {weights.folder}:\n  {shorten(unread)}\n"
            "The model would compute with unscaled codes. Open the unquantised or the FP8 release."
        )
    require_loaded(model)
    return model.eval()


def _from_pretrained(weights: Weights, **options: Any) -> Any:
    """Load the folder with transformers; return the model and its loading info."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            weights.folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        raise UnknownQuantization(
            f"transformers cannot read the weights in {weights.folder}: {error}\n"
            "Install the package that it names, or open the unquantised release."
        ) from error


def as_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """Convert to a torch dtype, or "auto": that of the checkpoint."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise BadArgument(
            f"dtype={dtype!r} is not a dtype of torch.\nUse 'bfloat16' or 'float32'; by default it is the checkpoint's."
        )
    return torch_dtype
