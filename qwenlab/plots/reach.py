"""Reach of heads of both kinds: how far back their mass is, and on what."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import ends, need, need_labels
from qwenlab.plots.base.heads import draw_heads, side_by_side
from qwenlab.plots.base.panels import (
    ManyAxes,
    dash,
    kind_marks,
    layer_width,
    legend_above,
    mark,
    name_kinds,
    names_of,
    panel,
    panels,
    stroke,
)
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import COLOURS, GREY, LABELS, shades, style

_LABELS = {
    "entropy": "entropy\n(nat)",
    "first_mass": "first token\n(share of mass)",
    "output_first": "first token\n(share of output)",
    "previous_mass": "previous token\n(share of mass)",
    "induction": "induction\n(share of mass)",
    "negative": "negative\n(share of mass)",
}
_UNIFORM = {"first_mass": "first_even", "induction": "induction_even"}
_GATED = {"output_first": "gated_output_first"}
_SINK = {
    "first_mass": "share of mass",
    "output_first": "share of output,\ngate off",
    "gated_output_first": "share of output,\ngate on",
}
_COMPARED = {
    "horizon": "horizon (tokens)",
    "entropy": "entropy (nat)",
    "first_mass": "first token (share)",
    "previous_mass": "previous token (share)",
    "induction_lift": "induction / uniform",
    "negative": "negative (share)",
}


@style()
def reach(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Reach of every head of both kinds, side by side in their layers, shortest first.

    statistics  of stats.reach
    axes        one, and one more for each of the statistics below, above each other

    Above: from the distance that holds the smallest share of the mass to that of the largest (50 to 90 %), on a log2
    axis. Below, with intervals and as far as measured: entropy of the mass; mass on the first token; share of the
    output that comes from the first token (rings: with attention's output gate on); mass on the previous token; mass
    after earlier occurrences of the same token (induction); mass of negative weights. Grey: uniform weights.
    """
    data = need(statistics, "reach", "horizon", "first_mass", "induction")
    names = [name for name in _LABELS if name in data]
    ratios = [1.7, *[1] * len(names)]
    size = layer_width(data, least=6.0), 2.3 + 1.25 * len(names)
    shown = panels(axes, (len(ratios), 1), *size, sharex=True, height_ratios=ratios, grid="y")
    above, *below = shown.axes
    low, high = data["share"].values.min(), data["share"].values.max()
    order = data["horizon"].sel(share=high, drop=True)

    def horizons(here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
        both = here["horizon"].min("share"), here["horizon"].max("share")
        above.vlines(x, *both, color=colour, alpha=0.9, linewidth=width)
        for end in both:  # visible if both are equal
            above.scatter(x, end, s=max(3.0, 2 * width), color=colour, linewidths=0)

    side_by_side(data, order, horizons)
    binary_scale(above.yaxis, zero=True)
    label = f"{100 * low:.0f} to {100 * high:.0f}% horizon\n(tokens)"
    above.set(title="Reach by head", ylabel=label, ylim=(-0.2, None))
    name_kinds(above, data, dash("uniform weights"))
    for ax, name in zip(below, names, strict=True):
        draw_heads(ax, data, order, name, ring=_GATED.get(name, ""), baseline=_UNIFORM.get(name, ""))
        ax.set(ylabel=_LABELS[name], ylim=(0, 1 if name == "negative" else None))
        if _GATED.get(name) in data:
            legend_above(ax, [mark("output gate on", COLOURS[ATTENTION], markerfacecolor="none")])
    shown.layers(data)
    return shown.figure


@style()
def mass_by_distance(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Cumulative mass of heads by distance: one panel per kind, a thin line per head, and their median in dark.

    statistics  of stats.reach. Dashed: the shares that define the horizons
    """
    data = need(statistics, "reach", "mass_share", "horizon")
    kinds = [kind for kind in KINDS if kind in names_of(data, "kind")]
    lower = data["distance_bin"].values
    farthest = np.append(lower[1:] - 1, lower[-1])  # the last distance of each bin
    reached = data["mass_share"].max([dim for dim in data["mass_share"].dims if dim != "distance_bin"]).values > 0
    end = 1 + int(np.flatnonzero(reached).max(initial=0))
    shown = panels(axes, (1, len(kinds)), 0.6 + 3.3 * len(kinds), 2.9, sharey=True)
    for ax, kind in zip(shown.axes, kinds, strict=True):
        share = data["mass_share"].sel(layer=data["kind"].values == kind).stack(one=["layer", "head"])
        within = share.dropna("one").transpose("distance_bin", "one").cumsum("distance_bin")[:end]
        dark = shades(kind)(1.0)
        ax.plot(farthest[:end], within, color=COLOURS[kind], linewidth=0.7, alpha=0.6)
        ax.plot(farthest[:end], within.median("one"), color=dark, linewidth=1.8)
        for horizon in data["share"].values:
            ax.axhline(horizon, color=GREY, linewidth=0.7, linestyle="--", zorder=0)
        binary_scale(ax.xaxis, zero=True)
        ax.set(title=LABELS[kind], xlabel="distance (tokens)", xlim=(-0.1, farthest[end - 1]), ylim=(0, 1.02))
        legend_above(ax, [stroke(f"median of {within.sizes['one']} heads", dark, 1.8)])
    shown.axes[0].set_ylabel("mass within (share)")
    return shown.figure


@style()
def reconstruction(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Relative error of DeltaNet heads' outputs that are recomputed from implicit attention weights, on a log axis.

    statistics  of stats.reach. Filled: the weights of `ql.probes.ImplicitAttention`; rings, if recorded: the weights
                without key removal. Heads of a layer are side by side, smallest error first. Dashed: the error of 0

    The error is the distance from the kernel's output, over the norm of that output.
    """
    data = need(statistics, "reach", "reconstruction_error")
    data = data.sel(layer=data["reconstruction_error"].notnull().any("head"))
    shown, ax = panel(ax, layer_width(data, least=5.0), 2.9, grid="y")
    exact, without = "reconstruction_error", "without_removal_error"
    draw_heads(ax, data, data[without if without in data else exact], exact, ring=without)
    marks = [mark("with key removal", COLOURS[DELTANET])]
    legend_above(ax, marks + [mark("without", COLOURS[DELTANET], markerfacecolor="none")] * (without in data))
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    ax.set_yscale("log")
    ax.set(title="Reconstruction", ylabel="relative error\nof the output")
    shown.layers(data)
    return shown.figure


@style()
def sink(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """The first token's share in every attention head: of the mass, and of the output before and after the gate.

    statistics  of stats.reach. Heads of a layer are side by side, smallest mass first, with intervals. Grey: the mass
                of uniform weights
    axes        three, above each other
    """
    data = need(statistics, "reach", "gated_output_first", "first_mass", "output_first")
    data = data.sel(layer=data["gated_output_first"].notnull().any("head"))
    shown = panels(axes, (3, 1), layer_width(data, least=4.5), 4.6, sharex=True, sharey=True, grid="y")
    for ax, (name, label) in zip(shown.axes, _SINK.items(), strict=True):
        draw_heads(ax, data, data["first_mass"], name, baseline="first_even" if name == "first_mass" else "")
        ax.set_ylabel(label)
    top = max(ax.get_ylim()[1] for ax in shown.axes)
    for ax in shown.axes:
        ax.set_ylim(0, top)
    shown.axes[0].set_title("First token's share")
    if "first_even" in data:
        legend_above(shown.axes[0], [dash("uniform weights")])
    shown.layers(data)
    return shown.figure


@style()
def reach_by_label(statistics: xr.Dataset, *, against: str, axes: ManyAxes = None) -> Figure:
    """Statistics of heads on texts of one label against texts of another: one mark per head, one column per statistic.

    statistics  of stats.reach(recording, by_label=True). The horizon is that of the largest share (90 %), on log2 axes
    against     the label of the x axes; every other label has a row
    axes        one for each other label and statistic, row by row

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
    for ax, (other, name) in zip(shown.axes, product(others, names), strict=True):
        _scatter(ax, data, name, against, other)
        if other == others[0] or not shown.new:
            title = f"{100 * largest:.0f}% {_COMPARED[name]}" if name == "horizon" else _COMPARED[name]
            ax.set_title(title, fontsize=8, fontweight="normal")
        ax.set(
            xlabel=f"on {against}" if other == others[-1] or not shown.new else "",
            ylabel=f"on {other}" if name == names[0] else "",
        )
    shown.legend(kind_marks(data, "o"))
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
