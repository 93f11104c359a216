"""Whether implicit weights make the output that the kernel returned."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import DELTANET
from qwenlab.plots.base.drawing import layer_ticks, layer_width, need
from qwenlab.plots.base.heads import dots, ring, rings, side_by_side
from qwenlab.plots.style import COLOURS, GREY, axes_of, legend_above, styled


@styled
def reconstruction(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """How far the output made of a DeltaNet head's weights is from the kernel's, of its norm, on a log axis.

    statistics  of stats.reach. Filled: the weights of `probe.ImplicitAttention`; rings, where they were made: those
    without the removal of keys. A layer's heads stand side by side, the nearest first; dashed: as far off as 0 is.
    """
    data = need(statistics, "reach", "reconstruction_error")
    data = data.sel(layer=data["reconstruction_error"].notnull().any("head"))
    figure, ax = axes_of(ax, layer_width(data, least=5.0), 2.9)
    exact, without = "reconstruction_error", "without_removal_error"
    order = data[without if without in data else exact]
    side_by_side(data, order, lambda *here: dots(ax, here[0], exact, *here[1:]))
    marks = [Line2D([], [], color=COLOURS[DELTANET], marker="o", linestyle="", label="with key removal")]
    if without in data:
        side_by_side(data, order, lambda *here: rings(ax, here[0], without, *here[1:]))
        marks.append(ring(COLOURS[DELTANET], "without"))
    legend_above(ax, marks)
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    ax.set_yscale("log")
    ax.set_ylabel("distance from the kernel's\noutput, over its norm")
    ax.set_title("Reconstruction")
    ax.grid(axis="y")
    layer_ticks(ax.xaxis, data)
    return figure
