"""Updates of the residual stream by each part of a layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from qwenlab.plots.base.drawing import colours_of, ends, need
from qwenlab.plots.base.panels import ManyAxes, layer_width, mark, name_kinds, panels
from qwenlab.plots.base.ticks import format_ticks
from qwenlab.plots.style import GREY, style

_MARKS = {"mixer": ("o", -0.15), "mlp": ("D", 0.15)}


@style()
def residual(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Size and direction of the updates by mixers (in the colour of their kind) and MLPs (grey), by layer.

    statistics  of stats.residual, with intervals
    axes        two, above each other
    """
    data = need(statistics, "residual", "ratio", "cosine", "ratio_interval", "cosine_interval")
    layers = np.arange(data.sizes["layer"])
    shown = panels(axes, (2, 1), layer_width(data, least=6.0), 4.2, sharex=True, grid="y")
    above, below = shown.axes
    for ax, name in ((above, "ratio"), (below, "cosine")):
        for part, (marker, offset) in _MARKS.items():
            colours = colours_of(data) if part == "mixer" else [GREY] * len(layers)
            ax.vlines(layers + offset, *ends(data[f"{name}_interval"].sel(part=part)), colors=colours, linewidth=1.2)
            ax.scatter(layers + offset, data[name].sel(part=part), c=colours, marker=marker, s=16, zorder=3)
    above.set_yscale("log")
    low, high = above.get_ylim()
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4))
    format_ticks(above.yaxis, "{:g}".format)
    above.set(title="Residual updates", ylabel="norm of the update\n/ norm of the stream")
    below.axhline(0, color="black", linewidth=0.6)
    below.set_ylabel("cosine of update\nand stream")
    shown.layers(data)
    name_kinds(above, data, mark("MLP", GREY, "D"))
    return shown.figure
