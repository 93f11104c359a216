"""The trunk: the text stack and lm_head of a checkpoint, as the plain causal language model of transformers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.layout import FP8_BLOCK, expected, misfits
from qwenlab.checkpoint.mtp_weights import mtp_prefix
from qwenlab.checkpoint.tensors import tensors
from qwenlab.checkpoint.weights import Weights, some
from qwenlab.errors import BadArgument, BrokenWeights, UnusedWeights, UnusedWeightsWarning

_OURS = (None, "fp8")  # ways of storing weights whose names and shapes `layout` knows


def check_trunk(weights: Weights, config: TextConfig, *, strict: bool = False) -> None:
    """Hold the tensors in the files to those the config asks for, from the headers alone.

    Raises BrokenWeights for tensors that are missing or misshapen. Tensors that nothing takes warn, or raise
    UnusedWeights when strict. Other quantisations than FP8 are left to transformers.
    """
    if config.quantization not in _OURS:
        return
    fused = _fused(weights, config)
    shapes = expected(fused, weights.tensors, config.weight_block or FP8_BLOCK)
    if wrong := misfits(shapes, weights.tensors):
        raise BrokenWeights(
            f"the shards in {weights.folder} do not hold the model that its config.json describes:\n  {some(wrong)}\n"
            "Fetch config.json and the shards again, of one revision."
        )
    family = config.family
    # A tied lm_head may be stored all the same.
    beside = (mtp_prefix(weights, config) or "mtp.", family.vision_prefix, f"{family.head}.")
    unused = [name for name in weights.tensors if name not in shapes and not name.startswith(beside)]
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


def load_trunk(
    weights: Weights,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from the folder's safetensors, in eval mode; never remote code, never a pickle.

    Raises BrokenWeights where transformers had to make up a weight.
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
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        weights.folder,
        dtype=_dtype(dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise BrokenWeights(
            f"transformers found no weights in {weights.folder} for\n  {some(missing)}\nand drew them at random.\n"
            "Fetch config.json and the shards again, of one revision."
        )
    return model.eval()


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
