"""Errors of DeltaNet states in low precision."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.heads import draw_heads, fit_log
from qwenlab.plots.base.panels import ManyAxes, layer_width, legend_above, names_of, panel, panels
from qwenlab.plots.base.ticks import binary_scale, octave_of, octaves, positions
from qwenlab.plots.style import PALETTE, style

_ERROR = "error / norm of the state"


@style()
def state_precision(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Error of states in low precision along a text: one line per format, the median over heads by position.

    statistics  of stats.state_precision. Pale: the middle half of the heads; thin: the head with the largest error
    """
    data = need(statistics, "state_precision", "error", "format")
    shown, ax = panel(ax, 4.6, 3.2)
    error = data["error"].dropna("position_bin", how="all")
    x, medians = positions(error), []
    for colour, format in zip(PALETTE, names_of(error, "format"), strict=False):
        here = error.sel(format=format)
        low, middle, high, most = here.quantile([0.25, 0.5, 0.75, 1], ["layer", "head"]).transpose("quantile", ...)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        medians += ax.plot(x, middle, color=colour, marker="o", markersize=2.5, label=format)
        ax.plot(x, most, color=colour, linewidth=0.7)
    octaves(ax, x, "position in the text (tokens)")
    binary_scale(ax.yaxis)
    ax.set_ylabel(_ERROR)
    legend_above(ax, medians)
    ax.set_title("States in low precision", pad=22)
    return shown.figure


@style()
def state_precision_by_head(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Error of the state of every head in low precision: one mark per head with its interval, one panel per format.

    statistics  of stats.state_precision, at one octave of position. Raises BadArgument for several octaves

    Heads of a layer are sorted by their error in the first format, in all panels.
    """
    data = octave_of(need(statistics, "state_precision", "error", "error_interval", "format"))
    formats = names_of(data, "format")
    width, height = layer_width(data, least=6.0), 0.5 + 1.5 * len(formats)
    shown = panels(axes, (len(formats), 1), width, height, sharex=True, sharey=True, grid="y")
    for place, (ax, format) in enumerate(zip(shown.axes, formats, strict=True)):
        draw_heads(ax, data.isel(format=place), data["error"].isel(format=0), "error")
        fit_log(ax, data, "error")
        ax.set_title(format)
    shown.ylabel(_ERROR)
    shown.layers(data, "DeltaNet layer")
    return shown.figure
