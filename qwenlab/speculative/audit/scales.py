"""Compare the size of the MTP head's matrices with the target model's, to detect weights read without scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.weights.layout import FP8_BLOCK
from qwenlab.stats.base.variables import Row, variables

FAR = 8.0
"""A matrix this many times larger or smaller than the target model's was not read as it was stored.

FP8 weights read without their scales are hundreds or thousands of times too large, since the largest of a block is 448;
matrices of trained heads are within a factor of 2.
"""

_LAYER = "layers.0."


@torch.no_grad()
def weight_scales(head: MtpHead, block: tuple[int, ...] | None = None) -> xr.Dataset:
    """Root mean square of each matrix of the head, and of the target model's matrix of the same name.

    block  rows and columns per scale of a target model in FP8; by default those of the published releases

    returns  rms [weight], target_rms [weight] (mean over the target model's attention layers; NaN if none has such a
             matrix), ratio [weight]. `fc` has no match in a layer: its target_rms is the mean of all the others
    """
    decoder = decoder_of(head.target_model)
    layers = [decoder.layers[layer] for layer in decoder.layers_of(ATTENTION)]
    sizes = {}
    for name, weight in head.named_parameters():
        if weight.ndim > 1:
            matches = [_matching_rms(layer, name, weight, block or FP8_BLOCK) for layer in layers]
            sizes[name] = _rms(weight), np.mean([rms for rms in matches if rms is not None] or [np.nan])
    rms, target = np.array(list(sizes.values())).T
    if not np.isnan(target).all():
        target[list(sizes).index("fc.weight")] = np.nanmean(target)
    table = {
        "rms": Row(rms, ["weight"], "weight", "root mean square of the head's matrix"),
        "target_rms": Row(target, ["weight"], "weight", "root mean square of the target model's matrix"),
        "ratio": Row(rms / target, ["weight"], "1", "size of the head's matrix / the target model's"),
    }
    return xr.Dataset(variables(table), {"weight": list(sizes)})


def scale_factors(scales: xr.Dataset) -> dict[str, float]:
    """By matrix, the factor to the target model's size, for matrices more than `FAR` from it."""
    ratios = zip(scales["weight"].values.tolist(), scales["ratio"].values.tolist(), strict=True)
    return {name: 1 / ratio for name, ratio in ratios if ratio > 0 and not 1 / FAR <= ratio <= FAR}


def _matching_rms(layer: nn.Module, name: str, weight: torch.Tensor, block: tuple[int, ...]) -> float | None:
    """Root mean square of the matrix of this name in a layer of the target model; None without one of that shape."""
    path, _, last = name.removeprefix(_LAYER).rpartition(".")
    try:
        owner: Any = layer.get_submodule(path) if name.startswith(_LAYER) else None
    except AttributeError:
        owner = None
    match, scale = getattr(owner, last, None), getattr(owner, f"{last}_scale_inv", None)
    if match is None or match.shape != weight.shape or match.is_meta:
        return None
    return None if scale is not None and scale.ndim != match.ndim else _rms(match, scale, block)


def _rms(weight: torch.Tensor, scale: torch.Tensor | None = None, block: tuple[int, ...] = FP8_BLOCK) -> float:
    """Root mean square of a matrix, or of a tensor of experts, in float32, one matrix at a time; FP8 scaled."""
    rows, columns = weight.shape[-2:]
    scales = [None] * weight[..., 0, 0].numel() if scale is None else scale.reshape(-1, *scale.shape[-2:])
    squares = 0.0
    for matrix, own in zip(weight.reshape(-1, rows, columns), scales, strict=True):
        matrix = matrix.float()
        if own is not None:
            wide = own.float().repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
            matrix = matrix * wide[:rows, :columns]
        squares += float(matrix.square().sum())
    return float((squares / weight.numel()) ** 0.5)
