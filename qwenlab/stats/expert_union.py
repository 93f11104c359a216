"""Distinct experts in a block of tokens: the experts that a verification step of a MoE model reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.base.source import statistic
from qwenlab.stats.base.variables import Row, variables
from qwenlab.stats.formulas import experts as formulas

_DIMS = ("token", "layer", "slot")


@statistic
def expert_union(choices: xr.DataArray | np.ndarray, *, widths: Sequence[int] = tuple(range(1, 10))) -> xr.Dataset:
    """Number of distinct experts in blocks of n consecutive tokens, from the choices of each token.

    distinct         [layer, width] mean over all blocks of n tokens within one text
    independent      [layer, width] the same for unrelated tokens: sum over experts of 1 - (1 - share)^n
    experts_touched  [width] mean of `distinct` over layers: for the costs of `stats.speedup`
    blocks           [width] number of blocks

    choices  int [token, layer, slot], index of a routed expert; a DataArray may have a coordinate `text` [token], and
             no block spans two texts
    widths   n; drafting d tokens verifies blocks of d + 1

    Raises BadArgument for other shapes, values and widths, and NothingMeasured if no text is as long as a block.
    """
    chosen = _checked(choices)
    if not widths or min(widths) < 1:
        raise BadArgument(f"widths={list(widths)!r}: give the numbers of tokens per block, such as 1 to 9.")
    text = chosen["text"].values if "text" in chosen.coords else np.zeros(chosen.sizes["token"])
    sizes = np.asarray(widths)
    blocks = np.array([(text[n - 1 :] == text[: max(0, len(text) - n + 1)]).sum() for n in sizes])
    if not blocks.all():
        raise NothingMeasured(
            f"No text has {sizes[blocks == 0].min()} tokens, the size of a block.\nRead longer texts."
        )
    by_layer = [chosen.isel(layer=layer).values for layer in range(chosen.sizes["layer"])]
    distinct = np.stack([formulas.distinct_in_blocks(layer, text, sizes) for layer in by_layer])
    shares = [np.bincount(layer.ravel()) / len(layer) for layer in by_layer]
    independent = np.stack([formulas.distinct_if_independent(share, sizes) for share in shares])
    by, width = ("layer", "width"), ("width",)
    table = {
        "distinct": Row(distinct, by, "expert", "distinct experts in a block"),
        "independent": Row(independent, by, "expert", "distinct experts of unrelated tokens"),
        "experts_touched": Row(distinct.mean(axis=0), width, "expert", "experts touched, mean over layers"),
        "blocks": Row(blocks, width, "block", "blocks"),
    }
    layer = chosen["layer"].values if "layer" in chosen.coords else np.arange(len(by_layer))
    at = {"layer": layer, "width": ("width", sizes, {"units": "token", "long_name": "tokens in a block"})}
    return xr.Dataset(variables(table), at, {"sample": "{}"})


def _checked(choices: xr.DataArray | np.ndarray) -> xr.DataArray:
    """Return choices [token, layer, slot] with their coordinates; raises BadArgument."""
    if not isinstance(choices, xr.DataArray):
        values = np.asarray(choices)
        choices = xr.DataArray(values, dims=_DIMS if values.ndim == len(_DIMS) else None)
    if set(choices.dims) != set(_DIMS) or choices.dtype.kind not in "iu" or not choices.size or choices.min() < 0:
        raise BadArgument(
            f"choices is {choices.dtype} {list(choices.shape)} with dims {', '.join(map(str, choices.dims))}.\n"
            f"Give the indices of the chosen experts, from 0: int [{', '.join(_DIMS)}]."
        )
    return choices.transpose(*_DIMS)
