"""Heads on the texts of one label against those of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import KINDS
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary, kinds_of, need, say
from qwenlab.plots.style import COLOURS, GREY, LABELS, new_figure, styled

_COMPARED = (
    ("horizon", "horizon (tokens)"),
    ("entropy", "entropy (nats)"),
    ("first_mass", "first token (share)"),
    ("previous_mass", "token before (share)"),
    ("induction_lift", "induction / even"),
    ("negative", "negative (share)"),
)


@styled
def reach_by_label(statistics: xr.Dataset, *, against: str) -> Figure:
    """What heads do on one label's texts against what they do on another's: a mark a head, a column a statistic.

    statistics  of stats.reach(recording, by_label=True). The horizon is that of the largest share (90 %), on log2 axes
    against     the label along the x axes; each other label has a row. On the grey line a head does the same on both;
                thin lines are intervals, cut at the axes
    """
    data = _labelled(statistics, against)
    farthest = data["share"].values.max()
    data = data.assign({name: data[name].sel(share=farthest, drop=True) for name in ("horizon", "horizon_interval")})
    shown = [(name, title) for name, title in _COMPARED if name in data and data[name].notnull().any()]
    others = [str(label) for label in data["label"].values if label != against]
    figure = new_figure(0.4 + 1.75 * len(shown), 0.45 + 1.75 * len(others))
    for row, other in zip(figure.subplots(len(others), len(shown), squeeze=False), others, strict=True):
        for ax, (name, title) in zip(row, shown, strict=True):
            _head_by_head(ax, data, name, against, other)
            title = f"{100 * farthest:.0f} % {title}" if name == "horizon" else title
            ax.set_title(title if other == others[0] else "", fontsize=8.5)
            ax.set_xlabel(f"on {against}" if other == others[-1] else "")
        row[0].set_ylabel(f"on {other}")
    kinds = [kind for kind in KINDS if kind in kinds_of(data)]
    marks = [Line2D([], [], color=COLOURS[kind], marker="o", linestyle="", label=LABELS[kind]) for kind in kinds]
    figure.legend(handles=marks, loc="outside upper right", ncols=len(marks))
    return figure


def _labelled(statistics: xr.Dataset, against: str) -> xr.Dataset:
    """Statistics by label. Raises MissingVariable for others, and BadArgument where a label is not there."""
    made = "Draw what qwenlab.stats.reach(recording, by_label=True) returns."
    labelled = isinstance(statistics, xr.Dataset) and "label" in statistics.dims
    need(statistics.isel(label=0) if labelled else statistics, "reach", "horizon", "first_mass")
    labels = [str(label) for label in statistics["label"].values] if labelled else []
    if against not in labels or len(labels) < 2:
        said = f"has the labels {', '.join(labels)}" if labels else "is not by label"
        raise BadArgument(f"against={against!r}: this {said}; two are needed, that one among them.\n{made}")
    return statistics


def _head_by_head(ax: Axes, data: xr.Dataset, name: str, against: str, other: str) -> None:
    """One statistic of every head: along x of the texts of one label, along y of those of another."""
    low, high = float(data[name].min()), float(data[name].max())
    for kind in KINDS:
        here = data.sel(layer=data["kind"].values == kind)
        x, y = (here[name].sel(label=label).values.ravel() for label in (against, other))
        (left, right), (bottom, top) = (_ends(here[f"{name}_interval"].sel(label=label)) for label in (against, other))
        thin: dict[str, Any] = {"color": COLOURS[kind], "linewidth": 0.6, "alpha": 0.35}
        ax.hlines(y, left, right, **thin)
        ax.vlines(x, bottom, top, **thin)
        ax.scatter(x, y, s=7, color=COLOURS[kind], linewidths=0, zorder=3)
    if name == "horizon":
        for scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
            scale("symlog", base=2, linthresh=1, linscale=0.5)
            axis.set_ticks([0, *(float(8 ** (power if high < 2**10 else 2 * power)) for power in range(7))])
            say(axis, binary)
        low, high = -0.2, 1.5 * max(high, 1)
    else:
        ax.locator_params(nbins=3)
        low, high = low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1)
    ax.plot([low, high], [low, high], color=GREY, linewidth=0.7, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)


def _ends(interval: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of every head."""
    return interval.sel(bound="low").values.ravel(), interval.sel(bound="high").values.ravel()
