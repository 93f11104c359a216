"""Half-lives of DeltaNet heads."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import kinds_of, need, quantiles_by_head, quantity
from qwenlab.plots.base.panels import axes_of, layer_ticks, layer_width, name_kinds
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import style


@style()
def half_life(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Half-life of every DeltaNet head: quantiles over tokens, on a log2 axis, with the heads of a layer side by side.

    statistics  of stats.half_life. Pale: the outermost quantiles; strong: the inner pair; black: the median
    ax          axes to draw in; by default those of a new figure
    """
    data = need(statistics, "half_life", "half_life")
    figure, ax = axes_of(ax, layer_width(data), 3.2)
    quantiles_by_head(ax, data["half_life"])
    binary_scale(ax.yaxis)
    ax.set_ylabel(quantity(data["half_life"]))
    ax.grid(axis="y")
    layer_ticks(ax.xaxis, data)
    name_kinds(ax, kinds_of(data))
    ax.set_title("Half-life by head")
    return figure
