"""What each part of a layer adds to the stream."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from qwenlab.plots.base.drawing import interval_lines, kinds_of, layer_ticks, layer_width, need, say
from qwenlab.plots.style import COLOURS, GREY, name_kinds, new_figure, styled

_MARKS = {"mixer": ("o", -0.15), "mlp": ("D", 0.15)}


@styled
def residual(statistics: xr.Dataset) -> Figure:
    """Size and direction of what mixers (in the colour of their kind) and MLPs (grey) add to the stream, by layer.

    statistics  of stats.residual, with intervals.
    """
    data = need(statistics, "residual", "ratio", "cosine", "ratio_interval", "cosine_interval")
    layers, kinds = np.arange(data.sizes["layer"]), kinds_of(data)
    figure = new_figure(layer_width(data, least=6.0), 4.2)
    above, below = figure.subplots(2, 1, sharex=True)
    for ax, name in ((above, "ratio"), (below, "cosine")):
        for part, (marker, offset) in _MARKS.items():
            colours = [COLOURS[kind] if part == "mixer" else GREY for kind in kinds]
            x = layers + offset
            interval_lines(ax, x, data[f"{name}_interval"].sel(part=part), colours)
            ax.scatter(x, data[name].sel(part=part), c=colours, marker=marker, s=16, zorder=3)
        ax.grid(axis="y")
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    say(above.yaxis, "{:g}".format)
    above.set_ylabel("norm of what is added\nover that of the stream")
    above.set_title("What is added to the stream")
    below.axhline(0, color="black", linewidth=0.6)
    below.set_ylabel("cosine of what is added\nto the stream")
    layer_ticks(below.xaxis, data)
    name_kinds(above, kinds, Line2D([], [], color=GREY, marker="D", linestyle="", label="MLP"))
    return figure
