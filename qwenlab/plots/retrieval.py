"""Retrieval heads: mass from a question to its answer."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.heads import draw_heads
from qwenlab.plots.base.panels import ManyAxes, dash, kind_marks, layer_width, legend_above, panels
from qwenlab.plots.style import style

_PANELS = (
    ("retrieval", "control", "another pair's value", "mass on the\nqueried value (share)"),
    ("picked", "chance", "chance", "queried value has the\nlargest mass (share)"),
)


@style()
def retrieval(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Mass of each head on the queried value, and how often that value has the largest mass of all pairs' values.

    statistics  of stats.retrieval. Heads of a layer are side by side, smallest mass first, with intervals. Grey: the
                controls, another pair's value above, and chance below
    """
    data = need(statistics, "retrieval", "retrieval", "picked", "control", "chance")
    shown = panels(axes, (2, 1), layer_width(data, least=6.4), 4.4, sharex=True, grid="y")
    for ax, (name, control, meaning, label) in zip(shown.axes, _PANELS, strict=True):
        draw_heads(ax, data, data["retrieval"], name, baseline=control)
        ax.set_ylabel(label)
        legend_above(ax, [*(kind_marks(data) if name == "retrieval" else ()), dash(meaning)])
    above, below = shown.axes
    above.set(title="Retrieval by head", ylim=(0, None))
    below.set_ylim(0, 1.05)
    shown.layers(data)
    return shown.figure
