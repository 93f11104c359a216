"""Check the file headers: are the tensors stored in the format that the config describes?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.weights.shards import StoredTensor, Weights, shorten
from qwenlab.errors import BrokenWeights, UnknownQuantization

PLAIN = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes whose values are the weights themselves."""

_SCALE = "_scale_inv"
_PARTS = ("scale", "qweight", "qzeros", "g_idx", "absmax", "quant_map", "quant_state", "zero_point", "packed")
"""Strings in the last part of a name that only tensors of quantised layers have."""


def check_quantisation(weights: Weights, config: TextConfig, wanted: Collection[str]) -> None:
    """Check that the target model's tensors are stored in the format that config.json describes.

    wanted  the names of the target model's weights; these tensors and those of the same layers are checked

    Raises UnknownQuantization for a quantisation that transformers does not know, and would skip; and BrokenWeights for
    codes or scales that the config does not mention, and for codes without scales or scales without codes.
    """
    layers = {*wanted, *(name.removesuffix(".weight") for name in wanted)}
    stored = {
        name: tensor for name, tensor in weights.tensors.items() if name in layers or name.rpartition(".")[0] in layers
    }
    if config.quantization is None:
        _require_plain(weights, stored)
    elif config.quantization == "fp8":
        _require_pairs(weights, stored)
    elif config.quantization not in (*AUTO_QUANTIZER_MAPPING, "bitsandbytes"):  # its key there includes the bits
        raise UnknownQuantization(
            f"{weights.folder}: config.json has quant_method {config.quantization!r}, which transformers does not know "
            "and would skip, so that it would read the stored codes as plain weights.\n"
            "Open the unquantised release, or the FP8 release with one weight_scale_inv per block."
        )


def is_readable(tensor: StoredTensor) -> bool:
    """Whether a tensor is stored as plain weights, or as FP8 with block scales."""
    return tensor.dtype in PLAIN or tensor.dtype.startswith("F8")


def is_of_quantisation(name: str) -> bool:
    """Whether a tensor of this name belongs to a quantised layer: a scale, packed codes, zero points."""
    last = name.rpartition(".")[2]
    return any(part in last for part in _PARTS)


def _require_plain(weights: Weights, stored: Mapping[str, StoredTensor]) -> None:
    codes = [f"{name} ({tensor.dtype})" for name, tensor in stored.items() if tensor.dtype not in PLAIN]
    scales = [name for name in stored if is_of_quantisation(name)]
    if quantised := codes + scales:
        raise BrokenWeights(
            f"{weights.folder}: config.json has no quantization_config with a quant_method, but {len(quantised)} "
            f"tensors are those of a quantised model:\n  {shorten(quantised)}\nTheir codes would be read as plain "
            "weights. Restore the quantization_config that the checkpoint was published with."
        )


def _require_pairs(weights: Weights, stored: Mapping[str, StoredTensor]) -> None:
    """Check for FP8 that each matrix of codes has scales, and each scale a matrix of codes."""
    codes = {name for name, tensor in stored.items() if tensor.dtype.startswith("F8")}
    wrong = [f"{name} is stored as {tensor.dtype}" for name, tensor in stored.items() if not is_readable(tensor)]
    wrong += [f"{name} has no {name.rpartition('.')[2]}{_SCALE}" for name in codes if name + _SCALE not in stored]
    for name in stored:
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) not in codes:
            wrong.append(f"{name} scales {name.removesuffix(_SCALE)}, which is not stored in FP8")
        elif is_of_quantisation(name) and not name.endswith(_SCALE):
            wrong.append(f"{name} is not part of block-scaled FP8")
    if wrong:
        raise BrokenWeights(
            f"{weights.folder}: the shards do not match the FP8 weights that config.json describes:\n"
            f"  {shorten(wrong)}\n"
            "Download config.json and the shards again, from the same revision."
        )
