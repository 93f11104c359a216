"""Whether the tensors in a checkpoint's files are stored as its config says, from the headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.weights.shards import StoredTensor, Weights, some
from qwenlab.errors import BrokenWeights, UnknownQuantization

PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes, in the words of safetensors, whose values are the weights themselves."""

_SCALE = "_scale_inv"
_PARTS = ("scale", "qweight", "qzeros", "g_idx", "absmax", "quant_map", "quant_state", "zero_point", "packed")
"""What the last part of a name says of tensors that only a quantised layer has."""


def check_quantisation(weights: Weights, config: TextConfig, wanted: Collection[str]) -> None:
    """Check that the trunk's tensors are stored in the way that config.json names.

    wanted  the names of the trunk's weights; these tensors and those of the same layers are looked at

    Raises UnknownQuantization for a way of storing weights that transformers does not know, and would skip; and
    BrokenWeights for codes or scales that the config says nothing about, and for either without the other.
    """
    layers = {*wanted, *(name.removesuffix(".weight") for name in wanted)}
    stored = {name: each for name, each in weights.tensors.items() if name in layers or _owner(name) in layers}
    if config.quantization is None:
        _require_plain(weights, stored)
    elif config.quantization == "fp8":
        _require_pairs(weights, stored)
    elif config.quantization not in (*AUTO_QUANTIZER_MAPPING, "bitsandbytes"):  # whose key there names its bits
        raise UnknownQuantization(
            f"{weights.folder}: config.json says quant_method {config.quantization!r}, which transformers does not "
            "know and would skip: the stored codes would be read as plain weights.\n"
            "Open the unquantised release, or the FP8 one with a weight_scale_inv per block."
        )


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def is_readable(tensor: StoredTensor) -> bool:
    """Whether a tensor is stored as plain weights, or as FP8, which block scales turn into weights."""
    return tensor.dtype in PLAIN or tensor.dtype.startswith("F8")


def is_of_quantisation(name: str) -> bool:
    """Whether a tensor of this name belongs to a quantised layer: a scale, packed codes, zero points."""
    last = name.rpartition(".")[2]
    return any(part in last for part in _PARTS)


def _require_plain(weights: Weights, stored: Mapping[str, StoredTensor]) -> None:
    codes = [f"{name} ({each.dtype})" for name, each in stored.items() if each.dtype not in PLAIN]
    scales = [name for name in stored if is_of_quantisation(name)]
    if found := codes + scales:
        raise BrokenWeights(
            f"{weights.folder}: config.json has no quantization_config with a quant_method, and {len(found)} tensors "
            f"are those of a quantised model:\n  {some(found)}\nTheir codes would be read as plain weights. Put back "
            "the quantization_config that the checkpoint was published with."
        )


def _require_pairs(weights: Weights, stored: Mapping[str, StoredTensor]) -> None:
    """FP8: each matrix of codes has its scales, and each scale its codes."""
    codes = {name for name, each in stored.items() if each.dtype.startswith("F8")}
    wrong = [f"{name} is stored as {each.dtype}" for name, each in stored.items() if not is_readable(each)]
    wrong += [f"{name} has no {name.rpartition('.')[2]}{_SCALE}" for name in codes if name + _SCALE not in stored]
    for name in stored:
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) not in codes:
            wrong.append(f"{name} scales {name.removesuffix(_SCALE)}, which is not stored in FP8")
        elif is_of_quantisation(name) and not name.endswith(_SCALE):
            wrong.append(f"{name} is no part of block-scaled FP8")
    if wrong:
        raise BrokenWeights(
            f"{weights.folder}: the shards do not hold the FP8 weights that config.json describes:\n  {some(wrong)}\n"
            "Fetch config.json and the shards again, of one revision."
        )
