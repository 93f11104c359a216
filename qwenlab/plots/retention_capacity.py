"""Retrieval error by the number of stored pairs."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary, need, say
from qwenlab.plots.style import COLOURS, GREY, legend_above, new_figure, shades, styled


@styled
def capacity(statistics: xr.Dataset, accuracy: xr.Dataset | None = None) -> Figure:
    """The retrieval error of stored pairs by how many were stored: a line a head, and what the model makes of it.

    statistics  of stats.retention(recording, by=None, by_label=True), each label a number of pairs, such as "16". Thin:
                a head; thick: the median head; dashed: the error of a state that gives nothing back
    accuracy    by pairs, of stats.mean_over_texts(accuracy): a second panel, with its interval and its chance
    """
    labelled = isinstance(statistics, xr.Dataset) and "label" in statistics.dims
    need(statistics.isel(label=0) if labelled else statistics, "retention", "error")
    labels = [str(label) for label in statistics["label"].values] if labelled else []
    if not labels or not all(label.isdecimal() for label in labels) or "distance_bin" in statistics.dims:
        raise BadArgument(
            f"capacity(statistics): the labels are {labels}, and should be numbers of pairs, without further bins.\n"
            "Read lists of 4 pairs inside `with seen.label('4'):` and so on, and draw "
            "stats.retention(recording, by=None, by_label=True)."
        )
    x = np.array([int(label) for label in labels])
    order = np.argsort(x)
    panels = 1 if accuracy is None else 2
    figure = new_figure(3.7 * panels, 2.9)
    axes = np.atleast_1d(figure.subplots(1, panels))
    error = statistics["error"].isel(label=order).transpose("label", ...)
    axes[0].plot(x[order], error.values.reshape(len(x), -1), color=COLOURS[DELTANET], alpha=0.35, linewidth=0.8)
    axes[0].plot(x[order], error.median(["layer", "head"]), color=shades(DELTANET)(1.0), linewidth=2)
    axes[0].axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("retrieval error over the value's norm")
    axes[0].set_title("States")
    legend_above(
        axes[0],
        [
            Line2D([], [], color=shades(DELTANET)(1.0), linewidth=2, label="median"),
            Line2D([], [], color=COLOURS[DELTANET], linewidth=0.8, alpha=0.5, label="head"),
        ],
    )
    if accuracy is not None:
        _accuracy(axes[1], need(accuracy, "mean_over_texts", "mean", "mean_interval"))
    for ax in axes:
        ax.set_xscale("log", base=2)
        say(ax.xaxis, binary)
        ax.set_xticks(x[order])
        ax.set_xlabel("pairs listed")
        ax.grid(axis="y")
    return figure


def _accuracy(ax: Axes, statistics: xr.Dataset) -> None:
    """Share of queried values that the model returns, and chance."""
    x, interval = statistics["pairs"].values, statistics["mean_interval"]
    ax.vlines(x, interval.sel(bound="low"), interval.sel(bound="high"), color="black", linewidth=1.2)
    ax.plot(x, statistics["mean"], color="black", marker="o")
    if "chance" in statistics:
        for chance in np.unique(statistics["chance"]):
            ax.axhline(chance, color=GREY, linewidth=0.8, linestyle=":")
        legend_above(ax, [Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="chance")])
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("values given (share)")
    ax.set_title("The model")
