"""How large the MTP head's matrices are beside the trunk's of the same names: weights read raw stand out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.weights.layout import FP8_BLOCK

FAR = 8.0
"""A matrix so many times larger or smaller than the trunk's was not stored as it is now read.

FP8 weights read without their scales are hundreds or thousands of times too large, since the largest of a block is 448;
those of trained heads are within a factor of 2.
"""

_LAYER = "layers.0."


@torch.no_grad()
def weight_scales(head: MtpHead, block: tuple[int, ...] | None = None) -> xr.Dataset:
    """Root mean square of each matrix of the head, and of the trunk's of the same name.

    block  rows and columns that share a scale, where the trunk is held in FP8; by default the published releases'

    returns  rms [weight], trunk_rms [weight] (the mean over the trunk's attention layers; NaN where none has such a
             matrix), ratio [weight]. `fc` has no match in a layer: it is held to the mean of all the others' trunk_rms
    """
    decoder = decoder_of(head.trunk)
    layers = [decoder.layers[layer] for layer in decoder.layers_of(ATTENTION)]
    found = {}
    for name, weight in head.named_parameters():
        if weight.ndim > 1:
            partners = [_partner(layer, name, weight, block or FP8_BLOCK) for layer in layers]
            found[name] = _rms(weight), np.mean([rms for rms in partners if rms is not None] or [np.nan])
    rms, trunk = np.array(list(found.values())).T
    if not np.isnan(trunk).all():
        trunk[list(found).index("fc.weight")] = np.nanmean(trunk)
    about = {"units": "weight", "long_name": "root mean square of the head's matrix"}
    return xr.Dataset(
        {
            "rms": ("weight", rms, about),
            "trunk_rms": ("weight", trunk, about | {"long_name": "root mean square of the trunk's of the same name"}),
            "ratio": ("weight", rms / trunk, {"units": "1", "long_name": "the head's over the trunk's"}),
        },
        {"weight": list(found)},
    )


def factors(scales: xr.Dataset) -> dict[str, float]:
    """By matrix, what brings those that are `FAR` from the trunk's to its size."""
    ratio = dict(zip(scales["weight"].values.tolist(), scales["ratio"].values.tolist(), strict=True))
    return {name: 1 / each for name, each in ratio.items() if each > 0 and not 1 / FAR <= each <= FAR}


def _partner(layer: nn.Module, name: str, weight: torch.Tensor, block: tuple[int, ...]) -> float | None:
    """Root mean square of the matrix of this name in a layer of the trunk; None where it has none of that shape."""
    path, _, last = name.removeprefix(_LAYER).rpartition(".")
    try:
        owner: Any = layer.get_submodule(path) if name.startswith(_LAYER) else None
    except AttributeError:
        owner = None
    found, scale = getattr(owner, last, None), getattr(owner, f"{last}_scale_inv", None)
    if (
        found is None
        or found.shape != weight.shape
        or found.is_meta
        or (scale is not None and scale.ndim != found.ndim)
    ):
        return None
    return _rms(found, scale, block)


def _rms(weight: torch.Tensor, scale: torch.Tensor | None = None, block: tuple[int, ...] = FP8_BLOCK) -> float:
    """Over a matrix, or all matrices of a tensor of experts, one at a time."""
    squares = sum(float(matrix.square().sum()) for matrix in _matrices(weight, scale, block))
    return float((squares / weight.numel()) ** 0.5)


def _matrices(weight: torch.Tensor, scale: torch.Tensor | None, block: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Matrices in float32, FP8 times the scale of its block."""
    rows, columns = weight.shape[-2:]
    scales = [None] * weight[..., 0, 0].numel() if scale is None else scale.reshape(-1, *scale.shape[-2:])
    for matrix, own in zip(weight.reshape(-1, rows, columns), scales, strict=True):
        if own is None:
            yield matrix.float()
        else:
            wide = own.float().repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
            yield matrix.float() * wide[:rows, :columns]
