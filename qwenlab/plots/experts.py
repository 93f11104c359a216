"""Load of experts: how uniform it is, how many experts a window of tokens uses, and which are unused."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import colours_of, end_labels, ends, need, quantity, times_bar
from qwenlab.plots.base.panels import DASHED, ManyAxes, layer_ticks, name_kinds, panel, panels
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import DIVERGING, GREY, PALETTE, style

_NAMED = 5  # lines named at their ends
_UNUSED = PALETTE[4]


@style()
def expert_load(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Load of each expert relative to a uniform load, by layer, and its variation over experts.

    statistics  of stats.expert_load

    Left: green above the uniform load, purple below it, yellow unused. Right: coefficient of variation over experts
    with its interval.
    """
    data = need(statistics, "expert_load", "share", "even_share", "variation", "variation_interval")
    layers = np.arange(data.sizes["layer"])
    width, height = float(np.clip(6 + 0.03 * data.sizes["expert"], 6.5, 11)), min(9.0, 2.0 + 0.2 * len(layers))
    shown = panels(axes, (1, 2), width, height, sharey=True, width_ratios=[3, 1])
    left, right = shown.axes
    relative = (data["share"] / data["even_share"]).transpose("layer", "expert")
    left.set_facecolor(_UNUSED)
    edges = [np.arange(size + 1) - 0.5 for size in (data.sizes["expert"], len(layers))]
    norm = LogNorm(1 / 8, 8)
    mesh = left.pcolormesh(*edges, relative.where(relative > 0), cmap=DIVERGING, norm=norm, rasterized=True)
    label = f"load / uniform load (1/{data.sizes['expert']} of slots); yellow: unused"
    times_bar(mesh, left, label, location="bottom", aspect=40, shrink=0.8, pad=0.02)
    left.set(title="Load of the experts", xlabel="expert")
    for ax in (right, left):
        layer_ticks(ax.yaxis, data)
        ax.set_ylim(len(layers) - 0.5, -0.5)
    colours = colours_of(data)
    right.hlines(layers, *ends(data["variation_interval"]), colors=colours, linewidth=1.2)
    right.scatter(data["variation"], layers, color=colours, s=14, zorder=3)
    right.set(xlabel="coefficient of variation\nover experts", ylabel="", xlim=(0, None))
    right.grid(axis="x")
    name_kinds(left, data)
    return shown.figure


@style()
def distinct_experts(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Number of distinct experts per window of tokens, by layer, compared with unrelated tokens.

    statistics  of stats.distinct_experts. Left: the number (dashed: unrelated tokens). Right: the ratio of the two
    """
    data = need(statistics, "distinct_experts", "distinct", "independent", "relative")
    data = data.dropna("window", how="all", subset=["distinct"])
    shown = panels(axes, (1, 2), 7.5, 3.2)
    left, right = shown.axes
    alpha = float(np.clip(12 / data.sizes["layer"], 0.25, 0.9))
    for place, colour in enumerate(colours_of(data)):
        here = data.isel(layer=place)
        left.plot(data["window"], here["independent"], color=GREY, linestyle=DASHED, linewidth=0.8, alpha=alpha)
        for ax, name in ((left, "distinct"), (right, "relative")):
            ax.plot(data["window"], here[name], color=colour, marker="o", markersize=3, alpha=alpha)
    for ax in shown.axes:
        binary_scale(ax.xaxis)
        ax.set_xticks(data["window"].values, labels=[f"{n}" for n in data["window"].values])
        ax.set_xlabel("window (tokens)")
    left.set(title="Distinct experts per window", ylabel="distinct experts", ylim=(0, None))
    right.axhline(1, color=GREY, linestyle=DASHED, linewidth=0.8)
    right.text(1, 1, "unrelated tokens", transform=right.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    right.margins(y=0.12)
    right.set_ylabel("ratio to unrelated tokens")
    name_kinds(right, data)
    return shown.figure


@style()
def unused_experts(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Number of unused experts by tokens read, one line per layer, with intervals.

    statistics  of stats.unused_experts. The layers with most unused experts are named
    """
    data = need(statistics, "unused_experts", "unused", "unused_interval", "unused_final")
    colours, sizes = colours_of(data), data["sample_size"]
    shown, ax = panel(ax, 5.5, 3.4, grid="y")
    faint, strong = float(np.clip(0.6 / len(colours), 0.04, 1)), float(np.clip(10 / len(colours), 0.35, 0.9))
    for place, colour in enumerate(colours):
        here = data.isel(layer=place)
        ax.fill_between(sizes, *ends(here["unused_interval"]), color=colour, alpha=faint, linewidth=0)
        ax.plot(sizes, here["unused"], color=colour, alpha=strong, linewidth=1.0)
    binary_scale(ax.xaxis)
    ax.set(title="Unused experts", xlabel=quantity(sizes), ylabel=quantity(data["unused"]))
    ax.set(xlim=(1, float(sizes[-1])), ylim=(0, None))
    name_kinds(ax, data)
    left = sorted(zip(data["unused_final"].values, data["layer"].values, colours, strict=True), reverse=True)
    end_labels(ax, [(float(n), f"layer {layer}: {n}", colour) for n, layer, colour in left[:_NAMED] if n])
    return shown.figure
