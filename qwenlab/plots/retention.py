"""Retention of stored pairs in the states of DeltaNet heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.base.drawing import chosen_layers, ends, need, need_colours, need_labels
from qwenlab.plots.base.heads import layer_bar, layer_shades
from qwenlab.plots.base.panels import ManyAxes, legend_above, mark, panels, stroke
from qwenlab.plots.base.ticks import binary_scale, octaves, positions
from qwenlab.plots.style import COLOURS, GREY, PALETTE, shades, style

SINCE = {"distance_bin": "tokens since storage", "writes_bin": "pairs written since storage (sum of β)"}
SURVIVAL = "remaining share of the value"


@style()
def retention(statistics: xr.Dataset, *, layers: Sequence[int] | None = None, axes: ManyAxes = None) -> Figure:
    """Survival of stored pairs by their age: one panel per layer, one line per head.

    statistics  of stats.retention, by distance or by writes. Thin: survival by head; thick: the median head; dashed:
                what decay alone would leave, in the median head. Cut at -0.25
    layers      which to draw; by default all. Raises BadArgument for others
    """
    data = need(statistics, "retention", "survival", "decay_alone")
    chosen = chosen_layers(data, layers)
    dim = bins_of(data)
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    size = 1.2 + 1.9 * columns, 0.7 + 1.7 * rows
    shown = panels(axes, (rows, columns), *size, count=len(chosen), sharex=True, sharey=True)
    data = data.dropna(dim, how="all", subset=["survival"])
    x, blue = positions(data, dim), COLOURS[DELTANET]
    for ax, layer in zip(shown.axes, chosen, strict=True):
        here = data.sel(layer=layer)
        for head in here["head"].values:
            ax.plot(x, here["survival"].sel(head=head), color=blue, alpha=0.35, linewidth=0.8)
        ax.plot(x, here["survival"].median("head"), color=blue, linewidth=2)
        ax.plot(x, here["decay_alone"].median("head"), color="black", linewidth=1, linestyle="--")
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_title(f"layer {layer}", fontsize=8)
        ax.set_ylim(-0.25, 1.1)
        octaves(ax, x, "", ticks=4)
    shown.xlabel(SINCE[dim])
    shown.ylabel(SURVIVAL)
    head = stroke("head", blue, alpha=0.5)
    shown.legend([stroke("median", blue, 2), head, stroke("decay alone", "black", 1, "--")])
    return shown.figure


def bins_of(data: xr.Dataset) -> str:
    """Return the dimension of the bins of statistics. Raises MissingVariable without bins."""
    dims = [dim for dim in SINCE if dim in data.dims]
    if not dims:
        raise MissingVariable(
            "These statistics have no bins: they are of all queried pairs.\n"
            "Draw what qwenlab.stats.retention(recording, by='distance') returns."
        )
    return dims[0]


@style()
def retention_by_label(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Survival and retrieval error of stored pairs by their age, one colour per label.

    statistics  of stats.retention(recording, by_label=True), by distance or by writes. Lines: the median over all
                heads; pale: the middle half of them
    axes        two, side by side

    Raises BadArgument for statistics without labels, and for more labels than there are colours.
    """
    labels = need_labels(statistics, "retention", "survival", "error")
    if not labels:
        raise BadArgument(
            "These statistics are of all labels together.\n"
            "Draw what qwenlab.stats.retention(recording, by_label=True) returns."
        )
    need_colours("label", labels)
    dim = bins_of(statistics)
    shown = panels(axes, (1, 2), 7.2, 3.0)
    left, right = shown.axes
    for ax, name in ((left, "survival"), (right, "error")):
        values = statistics[name].dropna(dim, how="all")
        for colour, label in zip(PALETTE, labels, strict=False):
            here = values.isel(label=labels.index(label)).dropna(dim, how="all")
            x = positions(here, dim)
            low, middle, high = here.quantile([0.25, 0.5, 0.75], ["layer", "head"])
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, middle, color=colour, marker="o", markersize=2.5, label=label)
        octaves(ax, positions(values, dim), SINCE[dim])
    left.axhline(0, color=GREY, linewidth=0.6)
    left.set(title="Survival", ylabel=SURVIVAL)
    right.set(title="Retrieval error", ylabel="error / norm of the value")
    right.axhline(1, color="black", linewidth=0.8, linestyle="--")
    shown.legend([*right.get_legend_handles_labels()[0], stroke("empty state", "black", style="--")])
    return shown.figure


@style()
def capacity(statistics: xr.Dataset, accuracy: xr.Dataset | None = None, *, axes: ManyAxes = None) -> Figure:
    """Retrieval error of states by the number of stored pairs, one line per head, and the accuracy of the model.

    statistics  of stats.retention(recording, by=None, by_label=True), where each label is a number of pairs: "16".
                Thin: a head; thick: the median head; dashed: the error of an empty state
    accuracy    by pairs, of stats.mean_over_texts(accuracy): a second panel, with its interval and chance
    axes        one, or two with accuracy, side by side

    Raises BadArgument if labels are not numbers, or if there are bins.
    """
    labels = need_labels(statistics, "retention", "error")
    if not labels or not all(label.isdecimal() for label in labels) or "distance_bin" in statistics.dims:
        raise BadArgument(
            f"capacity(statistics): the labels are {labels}; they must be numbers of pairs, without further bins.\n"
            "Read lists of 4 pairs inside `with seen.label('4'):` and so on, and draw "
            "stats.retention(recording, by=None, by_label=True)."
        )
    x = np.array([int(label) for label in labels])
    order = np.argsort(x)
    count = 1 if accuracy is None else 2
    shown = panels(axes, (1, count), 3.7 * count, 2.9, grid="y")
    ax, dark = shown.axes[0], shades(DELTANET)(1.0)
    error = statistics["error"].isel(label=order).transpose("label", ...)
    ax.plot(x[order], error.values.reshape(len(x), -1), color=COLOURS[DELTANET], alpha=0.35, linewidth=0.8)
    ax.plot(x[order], error.median(["layer", "head"]), color=dark, linewidth=2)
    ax.axhline(1, color="black", linewidth=0.8, linestyle="--")
    ax.set(title="States", ylabel="retrieval error\n/ norm of the value", ylim=(0, None))
    legend_above(ax, [stroke("median", dark, 2), stroke("head", COLOURS[DELTANET], alpha=0.5)])
    if accuracy is not None:
        _accuracy(shown.axes[1], need(accuracy, "mean_over_texts", "mean", "mean_interval"))
    for ax in shown.axes:
        binary_scale(ax.xaxis)
        ax.set(xlabel="pairs in the list", xticks=x[order])
    return shown.figure


def _accuracy(ax: Axes, statistics: xr.Dataset) -> None:
    """Draw the share of queried values that the model returns, and chance."""
    x = statistics["pairs"].values
    ax.vlines(x, *ends(statistics["mean_interval"]), color="black", linewidth=1.2)
    ax.plot(x, statistics["mean"], color="black", marker="o")
    if "chance" in statistics:
        for chance in np.unique(statistics["chance"]):
            ax.axhline(chance, color=GREY, linewidth=0.8, linestyle=":")
        legend_above(ax, [stroke("chance", GREY, style=":")])
    ax.set(title="Model", ylabel="values recalled (share)", ylim=(0, 1.03))


@style()
def interference(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Loss of stored values by decay and by later writes, head by head, and whether similar keys explain the latter.

    statistics  of stats.half_life, stats.retention(recording, by=None) and stats.key_collision, merged

    Left, by the half-life of the decay: rings are what decay alone leaves, dots what remains; the line between them was
    overwritten (dashed where writes added). Right: the overwritten share by the collision of the head's keys; dotted:
    isotropic keys. Light for the first layers, dark for the last.
    """
    names = ("half_life_mean_log", "survival", "decay_alone", "overwritten", "overwritten_interval")
    data = need(statistics, "retention", *names, "key_collision", "isotropic_floor")
    group = data.sizes["head"] // data.sizes["key_head"]
    key_head = xr.DataArray(np.arange(data.sizes["head"]) // group, dims="head")
    collision = data["key_collision"].isel(key_head=key_head)
    shown = panels(axes, (1, 2), 7.4, 3.1, grid="y")
    left, right = shown.axes
    for place, colour in enumerate(layer_shades(data)):
        here = data.isel(layer=place)
        life, survival, decayed = here["half_life_mean_log"], here["survival"], here["decay_alone"]
        for line, some in (("-", decayed > survival), ("--", decayed <= survival)):
            x, low, high = (values[np.flatnonzero(some)] for values in (life, survival, decayed))
            left.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.7, linestyle=line)
        left.scatter(life, decayed, s=16, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=3)
        left.scatter(life, survival, s=14, color=colour, linewidths=0, zorder=4)
        across = collision.isel(layer=place)
        right.vlines(across, *ends(here["overwritten_interval"]), color=colour, linewidth=0.8, alpha=0.6)
        right.scatter(across, here["overwritten"], s=14, color=colour, linewidths=0, zorder=3)
    for ax in shown.axes:
        ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    binary_scale(left.xaxis)
    left.set(title="Survival", xlabel="half-life of the decay (tokens)", ylabel=SURVIVAL)
    right.axvline(float(data["isotropic_floor"]), color=GREY, linewidth=0.8, linestyle=":")
    right.set(title="Interference", xlabel="key collision (squared cosine)", ylabel="overwritten share of the value")
    right.set_xlim(0, 1)
    legend_above(left, [mark("decay alone", "black", markerfacecolor="white"), mark("survival", "black")])
    layer_bar(shown.axes, data)
    return shown.figure
