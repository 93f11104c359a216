"""Tensor layouts of checkpoint files: experts fused or separate, weights plain or in FP8 with scales."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import ceil

import torch

from qwenlab.checkpoint.weights.shards import StoredTensor

Shape = tuple[int, ...]

FP8_BLOCK = (128, 128)
"""Rows and columns per scale in the published FP8 releases."""

_EXPERT = re.compile(r"(.*\.experts)\.\d+\.(?:gate|up|down)_proj\.weight")
_SCALE = "_scale_inv"


def expected(fused: Mapping[str, Shape], stored: Mapping[str, StoredTensor], block: Shape) -> dict[str, Shape]:
    """Return the names and shapes of the tensors that the files must contain, in the layout of the files.

    fused   the tensors of a part of the model, with the experts of a layer as one tensor [expert, row, column]
    stored  the tensors in the files, under the same names; they show for each layer whether its experts are separate,
            and for each matrix whether it must have a scale
    """
    separate = {match[1] for name in stored if (match := _EXPERT.fullmatch(name))}
    shapes: dict[str, Shape] = {}
    for name, shape in fused.items():
        shapes |= dict(matrices(name, shape)) if name.rpartition(".")[0] in separate else {name: shape}
    for name, shape in list(shapes.items()):
        if name + _SCALE in stored or (name in stored and stored[name].dtype.startswith("F8")):
            rows, columns = shape[-2:]
            shapes[name + _SCALE] = (*shape[:-2], ceil(rows / block[0]), ceil(columns / block[1]))
    return shapes


def misfits(shapes: Mapping[str, Shape], stored: Mapping[str, StoredTensor]) -> list[str]:
    """List the tensors with a wrong shape and the missing tensors, one line per tensor."""
    misshapen = [
        f"{name} is {list(stored[name].shape)}, should be {list(shape)}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    return misshapen + [f"{name} {list(shape)} is missing" for name, shape in shapes.items() if name not in stored]


def assembled(tensors: Mapping[str, torch.Tensor], fused: Mapping[str, Shape], block: Shape) -> dict[str, torch.Tensor]:
    """Convert the tensors of complete files to those of `fused`: multiply FP8 by its scales, stack separate experts."""
    plain = {name: _scaled(name, tensors, block) for name in tensors if not name.endswith(_SCALE)}
    return {
        name: plain[name]
        if name in plain
        else torch.cat([plain[part] for part, _ in matrices(name, shape)]).view(shape)
        for name, shape in fused.items()
    }


def matrices(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Yield the names and shapes of the separate matrices of a fused tensor of experts, in the order of its rows."""
    stem, _, last = name.rpartition(".")
    experts, rows, columns = shape
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
    for expert in range(experts):
        for part in parts:
            yield f"{stem}.{expert}.{part}.weight", (rows // len(parts), columns)


def _scaled(name: str, tensors: Mapping[str, torch.Tensor], block: Shape) -> torch.Tensor:
    """A matrix times its scales, one per block of `block[0]` rows and `block[1]` columns; unchanged without scales."""
    tensor, scale = tensors[name], tensors.get(name + _SCALE)
    if scale is None:
        return tensor
    rows, columns = tensor.shape[-2:]
    wide = scale.float().repeat_interleave(block[0], dim=-2).repeat_interleave(block[1], dim=-1)
    return tensor.float() * wide[..., :rows, :columns]
