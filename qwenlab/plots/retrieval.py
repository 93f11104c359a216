"""Which heads point from a question to its answer."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import kinds_of, layer_ticks, layer_width, need
from qwenlab.plots.base.heads import dash, dashes, dots, side_by_side
from qwenlab.plots.style import name_kinds, new_figure, styled

_CONTROLS = {"retrieval": ("control", "on another pair's value"), "picked": ("chance", "by chance")}


@styled
def retrieval(statistics: xr.Dataset) -> Figure:
    """What each head puts on the value that is asked for, and how often it is the one of most weight among the pairs'.

    statistics  of stats.retrieval. A layer's heads stand side by side, those that give the value least first, with
    intervals. Grey: the controls, another pair's value above, and chance below.
    """
    data = need(statistics, "retrieval", *_CONTROLS, "control", "chance")
    figure = new_figure(layer_width(data, least=6.4), 4.4)
    axes = figure.subplots(2, 1, sharex=True)
    labels = ("mass on the value\nasked for (share)", "it has most weight of\nall values (share)")
    for ax, (name, (control, meaning)), label in zip(axes, _CONTROLS.items(), labels, strict=True):
        draw = partial(_heads, ax, name, control)
        side_by_side(data, data["retrieval"], draw)
        ax.set_ylabel(label)
        ax.grid(axis="y")
        name_kinds(ax, kinds_of(data) if ax is axes[0] else [], dash(meaning))
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, 1.05)
    axes[0].set_title("Retrieval by head")
    figure.align_ylabels(list(axes))
    layer_ticks(axes[-1].xaxis, data)
    return figure


def _heads(ax: Axes, name: str, control: str, here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
    dashes(ax, here, control, x, width)
    dots(ax, here, name, x, colour, width)
