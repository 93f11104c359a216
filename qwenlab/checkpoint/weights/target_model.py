"""The trunk: the text stack and lm_head of a checkpoint, as the plain causal language model of transformers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.weights.layout import FP8_BLOCK, expected, misfits
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.checkpoint.weights.mtp_weights import mtp_prefix
from qwenlab.checkpoint.weights.shards import Weights, some
from qwenlab.checkpoint.weights.stored_format import check_quantisation, is_of_quantisation
from qwenlab.errors import (
    BadArgument,
    BrokenWeights,
    UnknownQuantization,
    UnusedWeights,
    UnusedWeightsWarning,
)

_OURS = (None, "fp8")  # ways of storing weights whose names and shapes `layout` knows


def check_target(weights: Weights, config: TextConfig, *, strict: bool = False) -> None:
    """Hold the tensors in the files to those the config asks for, from the headers alone.

    Raises BrokenWeights for tensors that are missing, misshapen, or not stored as the config says, and
    UnknownQuantization. Tensors that nothing takes warn, or raise UnusedWeights when strict. Of other quantisations
    than FP8, `load_trunk` checks what transformers made of them.
    """
    shapes = expected(_fused(weights, config), weights.tensors, config.weight_block or FP8_BLOCK)
    check_quantisation(weights, config, [name for name in shapes if not is_of_quantisation(name)])
    if config.quantization not in _OURS:
        return
    if wrong := misfits(shapes, weights.tensors):
        raise BrokenWeights(
            f"the shards in {weights.folder} do not hold the model that its config.json describes:\n  {some(wrong)}\n"
            "Fetch config.json and the shards again, of one revision."
        )
    family = config.family
    # A tied lm_head may be stored all the same.
    known = (mtp_prefix(weights, config) or "mtp.", family.vision_prefix, f"{family.head}.")
    unused = [name for name in weights.tensors if name not in shapes and not name.startswith(known)]
    _report_unused(unused, weights, strict)


def _fused(weights: Weights, config: TextConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the trunk under their names in these files: transformers saves a text config over root names."""
    family = config.family
    built = family.root_prefix if config.is_root else family.text_prefix
    has_root = any(name.startswith(family.root_prefix) for name in weights.tensors)
    found = family.root_prefix if has_root else family.text_prefix
    return {
        found + tensor.name.removeprefix(built) if tensor.name.startswith(built) else tensor.name: tensor.shape
        for tensor in tensors(config)
        if tensor.part not in ("vision", "mtp")
    }


def _report_unused(unused: list[str], weights: Weights, strict: bool) -> None:
    if not unused:
        return
    message = f"{weights.folder} holds tensors that no part of the model takes:\n  {some(unused)}\n"
    if strict:
        raise UnusedWeights(f"{message}Leave strict=False to open the checkpoint without them, with a warning.")
    warnings.warn(f"{message}The model may lack what they were trained for.", UnusedWeightsWarning, stacklevel=4)


def load_target(
    weights: Weights,
    *,
    quantised: bool,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from the folder's safetensors, in eval mode; never remote code, never a pickle.

    quantised  whether config.json names a quantisation

    Raises BrokenWeights where transformers had to make up a weight or left tensors of a quantised layer unread,
    UnknownQuantization where it lacks what it needs for a quantisation, and HalfLoadedModel.
    """
    if device is not None and device_map is not None:
        raise BadArgument(
            "device and device_map were both given.\nUse device for one device, device_map to split the model."
        )
    chosen = {
        "device_map": {"": device} if device is not None else device_map,
        "attn_implementation": attn_implementation,
        "experts_implementation": experts_implementation,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    model, info = _from_pretrained(weights, dtype=_dtype(dtype), **given)
    if missing := sorted(info["missing_keys"]):
        raise BrokenWeights(
            f"transformers found no weights in {weights.folder} for\n  {some(missing)}\nand drew them at random.\n"
            "Fetch config.json and the shards again, of one revision."
        )
    unread = sorted(name for name in info["unexpected_keys"] if is_of_quantisation(name))
    if quantised and unread:
        raise BrokenWeights(
            f"transformers left tensors of quantised layers in {weights.folder} unread:\n  {some(unread)}\n"
            "The model would compute with unscaled codes. Open the unquantised release, or the FP8 one."
        )
    require_loaded(model)
    return model.eval()


def _from_pretrained(weights: Weights, **given: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What transformers makes of the folder, and its account of the tensors."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
    except ImportError as error:
        raise UnknownQuantization(
            f"transformers cannot read the weights in {weights.folder} here: {error}\n"
            "Install what it names, or open the unquantised release."
        ) from error
    model, info = loaded
    return model, info


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A torch dtype, or "auto": the checkpoint's own."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype):
        raise BadArgument(
            f"dtype={dtype!r} is no dtype of torch.\nUse 'bfloat16', 'float32', or leave it out: the checkpoint's."
        )
    return named
