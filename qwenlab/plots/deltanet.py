"""Half-lives of DeltaNet heads."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import (
    binary,
    kinds_of,
    layer_ticks,
    layer_width,
    need,
    quantiles_by_head,
    quantity,
    say,
)
from qwenlab.plots.style import axes_of, name_kinds, styled


@styled
def half_life(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """The half-life of every DeltaNet head: its quantiles over tokens, a layer's heads side by side, on a log2 axis.

    statistics  of stats.half_life. Pale: the outermost quantiles; strong: the inner pair; black: the median.
    """
    data = need(statistics, "half_life", "half_life")
    figure, ax = axes_of(ax, layer_width(data), 3.2)
    quantiles_by_head(ax, data["half_life"])
    ax.set_yscale("log", base=2)
    say(ax.yaxis, binary)
    ax.set_ylabel(quantity(data["half_life"]))
    ax.grid(axis="y")
    layer_ticks(ax.xaxis, data)
    name_kinds(ax, kinds_of(data))
    ax.set_title("Half-life by head")
    return figure
