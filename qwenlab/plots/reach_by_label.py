"""Statistics of heads on texts of one label against texts of another."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.checkpoint.families import KINDS
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary_scale, ends, kinds_of, need_labels
from qwenlab.plots.base.legends import kind_marks
from qwenlab.plots.base.panels import ManyAxes, panels
from qwenlab.plots.style import COLOURS, GREY, styled

_COMPARED = {
    "horizon": "horizon (tokens)",
    "entropy": "entropy (nat)",
    "first_mass": "first token (share)",
    "previous_mass": "previous token (share)",
    "induction_lift": "induction / uniform",
    "negative": "negative (share)",
}


@styled
def reach_by_label(statistics: xr.Dataset, *, against: str, axes: ManyAxes = None) -> Figure:
    """Statistics of heads on texts of one label against texts of another: one mark per head, one column per statistic.

    statistics  of stats.reach(recording, by_label=True). The horizon is that of the largest share (90 %), on log2 axes
    against     the label of the x axes; every other label has a row
    axes        one for each other label and statistic, row by row; by default those of a new figure

    On the grey line, a head is equal on both labels. Thin lines are intervals, cut at the axes. Raises MissingVariable
    for other statistics, and BadArgument if there are not two labels or `against` is not one of them.
    """
    labels = need_labels(statistics, "reach", "horizon", "first_mass")
    if against not in labels or len(labels) < 2:
        found = f"these statistics have the labels {', '.join(labels)}" if labels else "these statistics have no labels"
        raise BadArgument(
            f"reach_by_label(against={against!r}): {found}.\nDraw what qwenlab.stats.reach(recording, by_label=True) "
            "returns for two labels or more, and give one of them."
        )
    largest = statistics["share"].values.max()
    horizon = {name: statistics[name].sel(share=largest, drop=True) for name in ("horizon", "horizon_interval")}
    data = statistics.assign(horizon)
    names = [name for name in _COMPARED if name in data and data[name].notnull().any()]
    others = [label for label in labels if label != against]
    shape = len(others), len(names)
    shown = panels(axes, shape, 0.4 + 1.85 * len(names), 0.55 + 1.85 * len(others))
    for row, other in zip(shown.grid, others, strict=True):
        for ax, name in zip(row, names, strict=True):
            _scatter(ax, data, name, against, other)
            if other == others[0] or not shown.new:
                title = f"{100 * largest:.0f} % {_COMPARED[name]}" if name == "horizon" else _COMPARED[name]
                ax.set_title(title, fontsize=8, fontweight="normal")
            ax.set_xlabel(f"on {against}" if other == others[-1] or not shown.new else "")
        row[0].set_ylabel(f"on {other}")
    shown.legend(kind_marks(kinds_of(data), "o"))
    return shown.figure


def _scatter(ax: Axes, data: xr.Dataset, name: str, against: str, other: str) -> None:
    """Draw one statistic of every head: x on texts of one label, y on those of another."""
    low, high = float(data[name].min()), float(data[name].max())
    for kind in KINDS:
        here = data.sel(layer=data["kind"].values == kind)
        x, y = (here[name].sel(label=label).values.ravel() for label in (against, other))
        (left, right), (bottom, top) = (
            (end.values.ravel() for end in ends(here[f"{name}_interval"].sel(label=label)))
            for label in (against, other)
        )
        thin: dict[str, Any] = {"color": COLOURS[kind], "linewidth": 0.6, "alpha": 0.35}
        ax.hlines(y, left, right, **thin)
        ax.vlines(x, bottom, top, **thin)
        ax.scatter(x, y, s=7, color=COLOURS[kind], linewidths=0, zorder=3)
    if name == "horizon":
        for axis in (ax.xaxis, ax.yaxis):
            binary_scale(axis, zero=True)
            axis.set_ticks([0, *(float(8 ** (power if high < 2**10 else 2 * power)) for power in range(7))])
        low, high = -0.2, 1.5 * max(high, 1)
    else:
        ax.locator_params(nbins=3)
        low, high = low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1)
    ax.plot([low, high], [low, high], color=GREY, linewidth=0.7, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)
