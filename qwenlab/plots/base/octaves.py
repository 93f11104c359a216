"""Axes of octave bins: 0, 1, 2 to 3, 4 to 7, ..."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary_scale


def positions(values: xr.DataArray | xr.Dataset, dim: str = "position_bin") -> np.ndarray:
    """Return where each bin is drawn: 0, 1, and the middle of each octave."""
    edges = values[dim].values.astype(float)
    return np.where(edges > 1, edges * 2**0.5, edges)


def octaves(ax: Axes, x: np.ndarray, label: str, ticks: int = 8) -> None:
    """Format an x axis of integers by octave; it includes 0 if one of the integers is 0."""
    powers = 2.0 ** np.arange(np.floor(np.log2(max(x.max(initial=1), 1))) + 1)
    powers = powers[powers >= x.min()] if x.size else powers
    powers = powers[:: max(1, -(-len(powers) // ticks))]
    zero = bool((x < 1).any())
    binary_scale(ax.xaxis, zero=zero)
    if zero:
        ax.set_xlim(left=-0.2)
        powers = np.append(0, powers)
    ax.set_xticks(powers)
    ax.set_xlabel(label)
    ax.grid(axis="y")


def octave_of(statistics: xr.Dataset) -> xr.Dataset:
    """Return statistics of one octave of position. Raises BadArgument for several."""
    if statistics.sizes.get("position_bin", 1) == 1:
        return statistics.squeeze("position_bin", drop=True) if "position_bin" in statistics.dims else statistics
    edges = [int(edge) for edge in statistics.dropna("position_bin", how="all")["position_bin"].values]
    raise BadArgument(f"The statistics are of {len(edges)} octaves.\nSelect one: .sel(position_bin={edges[-1]}).")
