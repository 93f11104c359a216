"""States of DeltaNet heads that are kept in low precision."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import binary, layer_ticks, layer_width, need, say
from qwenlab.plots.base.heads import dots, fit_log, side_by_side
from qwenlab.plots.base.octaves import octave_of, octaves, positions
from qwenlab.plots.style import PALETTE, axes_of, legend_above, new_figure, styled


@styled
def state_precision(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """How far states in low precision stray along a text: a line a format, the median of all heads over position.

    statistics  of stats.state_precision. Pale: the middle half of the heads; thin: the head that strays furthest.
    """
    data = need(statistics, "state_precision", "error", "format")
    figure, ax = axes_of(ax, 4.6, 3.2)
    error = data["error"].dropna("position_bin", how="all")
    x = positions(error)
    for colour, format in zip(PALETTE, error["format"].values, strict=False):
        here = error.sel(format=format)
        low, middle, high, most = here.quantile([0.25, 0.5, 0.75, 1], ["layer", "head"]).transpose("quantile", ...)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, middle, color=colour, marker="o", markersize=2.5, label=str(format))
        ax.plot(x, most, color=colour, linewidth=0.7)
    octaves(ax, x, "position in the text (tokens)")
    ax.set_yscale("log", base=2)
    say(ax.yaxis, binary)
    ax.set_ylabel("error over the state's norm")
    legend_above(ax, ax.get_lines()[::2])
    ax.set_title("States in low precision", pad=22)
    return figure


@styled
def state_precision_by_head(statistics: xr.Dataset) -> Figure:
    """How far the state of every head strays in low precision: a mark a head with its interval, a panel a format.

    statistics  of stats.state_precision, at one octave of position. Heads stand in each layer by their error in the
                first format, in the same order in every panel. Raises BadArgument for several octaves.
    """
    data = octave_of(need(statistics, "state_precision", "error", "error_interval", "format"))
    formats = [str(format) for format in data["format"].values]
    figure = new_figure(layer_width(data, least=6.0), 0.5 + 1.5 * len(formats))
    axes = np.atleast_1d(figure.subplots(len(formats), 1, sharex=True, sharey=True))
    order = data["error"].isel(format=0)
    for place, (ax, format) in enumerate(zip(axes, formats, strict=True)):

        def draw(here: xr.Dataset, x: np.ndarray, colour: str, width: float, ax: Axes = ax, place: int = place) -> None:
            dots(ax, here.isel(format=place), "error", x, colour, width)

        side_by_side(data, order, draw)
        fit_log(ax, data, "error")
        ax.set_title(format)
        ax.grid(axis="y")
    figure.supylabel("error over the state's norm", fontsize=9)
    layer_ticks(axes[-1].xaxis, data)
    axes[-1].set_xlabel("DeltaNet layer")
    return figure
