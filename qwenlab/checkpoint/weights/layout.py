"""Which tensors the files must hold for a part of a model: experts fused or apart, plain or in FP8 with scales."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import ceil

import torch

from qwenlab.checkpoint.weights.shards import StoredTensor

Shape = tuple[int, ...]

FP8_BLOCK = (128, 128)
"""Rows and columns that share a scale in the published FP8 releases."""

_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(?:gate|up|down)_proj\.weight")
_SCALE = "_scale_inv"


def expected(fused: Mapping[str, Shape], stored: Mapping[str, StoredTensor], block: Shape) -> dict[str, Shape]:
    """The tensors and shapes that a complete part has, in the layout its files are in.

    fused   the part's tensors with the experts of a layer as one: [expert, row, column]
    stored  what the files hold, under the same names; decides for each layer whether its experts are apart, and for
            each matrix whether it must have a scale
    """
    apart = {match[1] for name in stored if (match := _EXPERT.fullmatch(name))}
    shapes: dict[str, Shape] = {}
    for name, shape in fused.items():
        shapes |= dict(_matrices(name, shape)) if name.rpartition(".")[0] in apart else {name: shape}
    for name, shape in list(shapes.items()):
        if name + _SCALE in stored or (name in stored and stored[name].dtype.startswith("F8")):
            rows, columns = shape[-2:]
            shapes[name + _SCALE] = (*shape[:-2], ceil(rows / block[0]), ceil(columns / block[1]))
    return shapes


def misfits(shapes: Mapping[str, Shape], stored: Mapping[str, StoredTensor]) -> list[str]:
    """What is wrong with the tensors that are there, and which are not, a line each."""
    misshapen = [
        f"{name} is {list(stored[name].shape)}, should be {list(shape)}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    return misshapen + [f"{name} {list(shape)} is missing" for name, shape in shapes.items() if name not in stored]


def assembled(tensors: Mapping[str, torch.Tensor], fused: Mapping[str, Shape], block: Shape) -> dict[str, torch.Tensor]:
    """Tensors as read from complete files -> those of `fused`: FP8 times its scales, single experts stacked."""
    plain = {name: _scaled(name, tensors, block) for name in tensors if not name.endswith(_SCALE)}
    return {name: plain[name] if name in plain else _stacked(plain, name, shape[0]) for name, shape in fused.items()}


def _matrices(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the single matrices that a fused tensor of experts stands for."""
    stem, _, last = name.rpartition(".")
    experts, rows, columns = shape
    parts = _parts(last)
    for expert in range(experts):
        for part in parts:
            yield f"{stem}.{expert}.{part}.weight", (rows // len(parts), columns)


def _parts(last: str) -> tuple[str, ...]:
    """What a fused tensor holds, first rows first."""
    return ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)


def _scaled(name: str, tensors: Mapping[str, torch.Tensor], block: Shape) -> torch.Tensor:
    """A matrix times its scales, one for `block[0]` rows and `block[1]` columns; without scales as it is."""
    tensor, scale = tensors[name], tensors.get(name + _SCALE)
    if scale is None:
        return tensor
    rows, columns = tensor.shape[-2:]
    wide = scale.float().repeat_interleave(block[0], dim=-2).repeat_interleave(block[1], dim=-1)
    return tensor.float() * wide[..., :rows, :columns]


def _stacked(plain: Mapping[str, torch.Tensor], name: str, experts: int) -> torch.Tensor:
    stem, _, last = name.rpartition(".")
    one = (torch.cat([plain[f"{stem}.{expert}.{part}.weight"] for part in _parts(last)]) for expert in range(experts))
    return torch.stack(list(one))
