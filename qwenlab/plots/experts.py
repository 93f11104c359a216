"""Load of experts: how uniform it is, how many experts a window of tokens uses, and which are unused."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import end_labels, ends, kinds_of, need, quantity, times_bar
from qwenlab.plots.base.panels import DASHED, ManyAxes, axes_of, layer_ticks, name_kinds, panels
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import COLOURS, DIVERGING, GREY, PALETTE, style

_NAMED = 5  # lines named at their ends
_UNUSED = PALETTE[4]


@style()
def expert_load(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Load of each expert relative to a uniform load, by layer, and its variation over experts.

    statistics  of stats.expert_load
    axes        two, side by side; by default those of a new figure

    Left: green above the uniform load, purple below it, yellow unused. Right: coefficient of variation over experts
    with its interval.
    """
    data = need(statistics, "expert_load", "share", "even_share", "variation", "variation_interval")
    layers, kinds = np.arange(data.sizes["layer"]), kinds_of(data)
    width, height = float(np.clip(6 + 0.03 * data.sizes["expert"], 6.5, 11)), min(9.0, 2.0 + 0.2 * len(layers))
    shown = panels(axes, (1, 2), width, height, sharey=True, width_ratios=[3, 1])
    left, right = shown.axes
    relative = (data["share"] / data["even_share"]).transpose("layer", "expert")
    left.set_facecolor(_UNUSED)
    edges = [np.arange(size + 1) - 0.5 for size in (data.sizes["expert"], len(layers))]
    norm = LogNorm(1 / 8, 8)
    mesh = left.pcolormesh(*edges, relative.where(relative > 0), cmap=DIVERGING, norm=norm, rasterized=True)
    bar = times_bar(mesh, left, location="bottom", aspect=40, shrink=0.8, pad=0.02)
    bar.set_label(f"load / uniform load (1/{data.sizes['expert']} of slots); yellow: unused")
    left.set_xlabel("expert")
    left.set_title("Load of the experts")
    for ax in (right, left):
        layer_ticks(ax.yaxis, data)
        ax.set_ylim(len(layers) - 0.5, -0.5)
    right.set_ylabel("")
    colours = [COLOURS[kind] for kind in kinds]
    right.hlines(layers, *ends(data["variation_interval"]), colors=colours, linewidth=1.2)
    right.scatter(data["variation"], layers, color=colours, s=14, zorder=3)
    right.set_xlim(left=0)
    right.set_xlabel("coefficient of variation\nover experts")
    right.grid(axis="x")
    name_kinds(left, kinds)
    return shown.figure


@style()
def distinct_experts(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Number of distinct experts per window of tokens, by layer, compared with unrelated tokens.

    statistics  of stats.distinct_experts. Left: the number (dashed: unrelated tokens). Right: the ratio of the two
    axes        two, side by side; by default those of a new figure
    """
    data = need(statistics, "distinct_experts", "distinct", "independent", "relative")
    data = data.dropna("window", how="all", subset=["distinct"])
    kinds = kinds_of(data)
    shown = panels(axes, (1, 2), 7.5, 3.2)
    left, right = shown.axes
    alpha = float(np.clip(12 / len(kinds), 0.25, 0.9))
    for place, kind in enumerate(kinds):
        here = data.isel(layer=place)
        left.plot(data["window"], here["independent"], color=GREY, linestyle=DASHED, linewidth=0.8, alpha=alpha)
        for ax, name in ((left, "distinct"), (right, "relative")):
            ax.plot(data["window"], here[name], color=COLOURS[kind], marker="o", markersize=3, alpha=alpha)
    for ax in shown.axes:
        binary_scale(ax.xaxis)
        ax.set_xticks(data["window"].values, labels=[f"{n}" for n in data["window"].values])
        ax.set_xlabel("window (tokens)")
    left.set_ylim(bottom=0)
    left.set_ylabel("distinct experts")
    left.set_title("Distinct experts per window")
    right.axhline(1, color=GREY, linestyle=DASHED, linewidth=0.8)
    right.text(1, 1, "unrelated tokens", transform=right.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    right.margins(y=0.12)
    right.set_ylabel("ratio to unrelated tokens")
    name_kinds(right, kinds)
    return shown.figure


@style()
def unused_experts(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Number of unused experts by tokens read, one line per layer, with intervals.

    statistics  of stats.unused_experts. The layers with most unused experts are named
    ax          axes to draw in; by default those of a new figure
    """
    data = need(statistics, "unused_experts", "unused", "unused_interval", "unused_final")
    kinds, sizes = kinds_of(data), data["sample_size"]
    figure, ax = axes_of(ax, 5.5, 3.4)
    faint, strong = float(np.clip(0.6 / len(kinds), 0.04, 1)), float(np.clip(10 / len(kinds), 0.35, 0.9))
    for place, kind in enumerate(kinds):
        here = data.isel(layer=place)
        ax.fill_between(sizes, *ends(here["unused_interval"]), color=COLOURS[kind], alpha=faint, linewidth=0)
        ax.plot(sizes, here["unused"], color=COLOURS[kind], alpha=strong, linewidth=1.0)
    binary_scale(ax.xaxis)
    ax.set_xlim(1, float(sizes[-1]))
    ax.set_ylim(bottom=0)
    ax.set_xlabel(quantity(sizes))
    ax.set_ylabel(quantity(data["unused"]))
    ax.grid(axis="y")
    ax.set_title("Unused experts")
    name_kinds(ax, kinds)
    left = sorted(zip(data["unused_final"].values, data["layer"].values, kinds, strict=True), reverse=True)
    named = [(float(n), f"layer {layer}: {n}", COLOURS[kind]) for n, layer, kind in left[:_NAMED] if n]
    end_labels(ax, named)
    return figure
