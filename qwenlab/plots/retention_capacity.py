"""How much states of DeltaNet heads hold, and what takes it: the pairs stored, later writes, keys that are alike."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.plots.base.depth import layer_bar, layer_shades
from qwenlab.plots.base.drawing import binary, need, say
from qwenlab.plots.style import COLOURS, GREY, legend_above, new_figure, shades, styled


@styled
def capacity(statistics: xr.Dataset, accuracy: xr.Dataset | None = None) -> Figure:
    """The retrieval error of stored pairs by how many were stored: a line a head, and what the model makes of it.

    statistics  of stats.retention(recording, by=None, by_label=True), each label a number of pairs, such as "16". Thin:
                a head; thick: the median head; dashed: the error of a state that gives nothing back
    accuracy    by pairs, of stats.over_texts(accuracy): a second panel, with its interval and its chance
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
        _accuracy(axes[1], need(accuracy, "over_texts", "mean", "mean_interval"))
    for ax in axes:
        ax.set_xscale("log", base=2)
        say(ax.xaxis, binary)
        ax.set_xticks(x[order])
        ax.set_xlabel("pairs listed")
        ax.grid(axis="y")
    return figure


def _accuracy(ax: Axes, told: xr.Dataset) -> None:
    """What the model gives of the values asked for, and chance."""
    x, interval = told["pairs"].values, told["mean_interval"]
    ax.vlines(x, interval.sel(bound="low"), interval.sel(bound="high"), color="black", linewidth=1.2)
    ax.plot(x, told["mean"], color="black", marker="o")
    if "chance" in told:
        for chance in np.unique(told["chance"]):
            ax.axhline(chance, color=GREY, linewidth=0.8, linestyle=":")
        legend_above(ax, [Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="chance")])
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("values given (share)")
    ax.set_title("The model")


@styled
def interference(statistics: xr.Dataset) -> Figure:
    """What takes a stored value away, head by head: decay, or later writes; and whether keys that are alike explain it.

    statistics  of stats.half_life, stats.retention(recording, by=None) and stats.key_collision, merged. Left, over the
                half-life of the decay: rings, what decay alone leaves; dots, what is left; the line between them was
                overwritten (dashed where writes added). Right: that line over the key collision of the head's keys;
                dotted: keys spread evenly. Light for the first layers, dark for the last.
    """
    names = ("half_life_mean_log", "survival", "decay_alone", "overwritten", "overwritten_interval")
    data = need(statistics, "retention", *names, "key_collision", "isotropic_floor")
    group = data.sizes["head"] // data.sizes["key_head"]
    own = xr.DataArray(np.arange(data.sizes["head"]) // group, dims="head")
    collision = data["key_collision"].isel(key_head=own)
    figure = new_figure(7.4, 3.1)
    left, right = figure.subplots(1, 2)
    for place, colour in enumerate(layer_shades(data)):
        here = data.isel(layer=place)
        life, kept, decayed = here["half_life_mean_log"], here["survival"], here["decay_alone"]
        for style, some in (("-", decayed > kept), ("--", decayed <= kept)):
            chosen = np.flatnonzero(some)
            left.vlines(
                life[chosen], kept[chosen], decayed[chosen], color=colour, linewidth=0.8, alpha=0.7, linestyle=style
            )
        left.scatter(life, decayed, s=16, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=3)
        left.scatter(life, kept, s=14, color=colour, linewidths=0, zorder=4)
        ends, across = here["overwritten_interval"], collision.isel(layer=place)
        right.vlines(across, ends.sel(bound="low"), ends.sel(bound="high"), color=colour, linewidth=0.8, alpha=0.6)
        right.scatter(across, here["overwritten"], s=14, color=colour, linewidths=0, zorder=3)
    for ax in (left, right):
        ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
        ax.grid(axis="y")
    left.set_xscale("log", base=2)
    say(left.xaxis, binary)
    left.set_xlabel("half-life of the decay (tokens)")
    left.set_ylabel("left of the stored value")
    right.axvline(float(data["isotropic_floor"]), color=GREY, linewidth=0.8, linestyle=":")
    right.set_xlim(0, 1)
    right.set_xlabel("key collision (squared cosine)")
    right.set_ylabel("overwritten")
    ring = Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor="white", label="decay alone")
    legend_above(left, [ring, Line2D([], [], color="black", marker="o", linestyle="", label="left")])
    left.set_title("What is left")
    right.set_title("What writes took")
    layer_bar(figure, [left, right], data)
    return figure
