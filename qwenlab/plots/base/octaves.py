"""Bins by octave along an axis."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary, say


def positions(values: xr.DataArray | xr.Dataset, dim: str = "position_bin") -> np.ndarray:
    """Where bins by octave are drawn: 0, 1, and the middle of each octave."""
    edges = values[dim].values.astype(float)
    return np.where(edges > 1, edges * 2**0.5, edges)


def octaves(ax: Axes, x: np.ndarray, label: str, ticks: int = 8) -> None:
    """An axis of whole numbers by octave, with a place for 0 where there is one among these."""
    powers = 2.0 ** np.arange(np.floor(np.log2(max(x.max(initial=1), 1))) + 1)
    powers = powers[powers >= x.min()] if x.size else powers
    powers = powers[:: max(1, -(-len(powers) // ticks))]
    if (x < 1).any():
        ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        ax.set_xlim(left=-0.2)
        powers = np.append(0, powers)
    else:
        ax.set_xscale("log", base=2)
    ax.set_xticks(powers)
    say(ax.xaxis, binary)
    ax.set_xlabel(label)
    ax.grid(axis="y")


def octave_of(statistics: xr.Dataset) -> xr.Dataset:
    """Statistics that are of one octave of position. Raises BadArgument for several."""
    if statistics.sizes.get("position_bin", 1) == 1:
        return statistics.squeeze("position_bin", drop=True) if "position_bin" in statistics.dims else statistics
    told = [int(edge) for edge in statistics.dropna("position_bin", how="all")["position_bin"].values]
    raise BadArgument(f"The statistics are of {len(told)} octaves.\nPick one: .sel(position_bin={told[-1]}).")
