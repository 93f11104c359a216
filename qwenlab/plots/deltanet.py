"""Half-lives of DeltaNet heads."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need, quantity
from qwenlab.plots.base.heads import quantiles_by_head
from qwenlab.plots.base.panels import layer_width, name_kinds, panel
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import style


@style()
def half_life(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Half-life of every DeltaNet head: quantiles over tokens, on a log2 axis, with the heads of a layer side by side.

    statistics  of stats.half_life. Pale: the outermost quantiles; strong: the inner pair; black: the median
    """
    data = need(statistics, "half_life", "half_life")
    shown, ax = panel(ax, layer_width(data), 3.2, grid="y")
    quantiles_by_head(ax, data["half_life"])
    binary_scale(ax.yaxis)
    ax.set(title="Half-life by head", ylabel=quantity(data["half_life"]))
    shown.layers(data)
    name_kinds(ax, data)
    return shown.figure
