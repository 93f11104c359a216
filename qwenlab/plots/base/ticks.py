"""Ticks of axes: powers of two, and octave bins (0, 1, 2 to 3, 4 to 7, ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import FuncFormatter, NullLocator

from qwenlab.errors import BadArgument


def format_ticks(axis: Axis, words: Callable[[float], str]) -> None:
    """Format the major ticks of an axis with `words(value)`, and remove its minor ticks."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set_minor_locator(NullLocator())


def binary(value: float) -> str:
    """Format a number with binary prefixes: 1/8, 1, 64, 4 k."""
    if value == 0:
        return "0"
    if abs(value) < 1:
        return f"1/{1 / value:,.6g}"
    for size, unit in ((2**30, "G"), (2**20, "M"), (2**10, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def binary_scale(axis: Axis, *, zero: bool = False) -> None:
    """Scale an axis by log2; with `zero`, linearly from 0 to 1 and by log2 from there."""
    how: dict[str, Any] = {"linthresh": 1, "linscale": 0.5} if zero else {}
    set_scale = axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale
    set_scale("symlog" if zero else "log", base=2, **how)
    format_ticks(axis, binary)


def two_ticks(ax: Axes) -> None:
    """Widen a log2 y axis until it has two powers of two, which the ticks are."""
    low, high = np.log2(ax.get_ylim())
    while np.floor(high) - np.ceil(low) < 1:
        if low - np.ceil(low - 1) < np.floor(high + 1) - high:
            low = np.ceil(low - 1)
        else:
            high = np.floor(high + 1)
    ax.set_ylim(2**low, 2**high)


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
