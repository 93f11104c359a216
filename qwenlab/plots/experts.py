"""How evenly experts are used, how many at a time, and which never."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import (
    binary,
    end_labels,
    kinds_of,
    layer_ticks,
    need,
    quantity,
    say,
    times_bar,
)
from qwenlab.plots.style import COLOURS, DIVERGING, GREY, PALETTE, axes_of, name_kinds, new_figure, styled

_NAMED = 5  # lines named at their ends
_NEVER = PALETTE[4]
_DASHED = (0, (3, 2))


@styled
def expert_load(statistics: xr.Dataset) -> Figure:
    """The load of each expert over an even spread, layer by layer, and how uneven each layer is.

    statistics  of stats.expert_load. Left: green above the even share, purple below it, yellow never used. Right:
    coefficient of variation over experts with its interval.
    """
    data = need(statistics, "expert_load", "share", "even_share", "variation", "variation_interval")
    layers, kinds = np.arange(data.sizes["layer"]), kinds_of(data)
    figure = new_figure(float(np.clip(6 + 0.03 * data.sizes["expert"], 6.5, 11)), min(9.0, 2.0 + 0.2 * len(layers)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    relative = (data["share"] / data["even_share"]).transpose("layer", "expert")
    left.set_facecolor(_NEVER)
    mesh = left.pcolormesh(
        np.arange(data.sizes["expert"] + 1) - 0.5,
        np.arange(len(layers) + 1) - 0.5,
        relative.where(relative > 0),
        cmap=DIVERGING,
        norm=LogNorm(1 / 8, 8),
        rasterized=True,
    )
    bar = times_bar(figure, mesh, left, location="bottom", aspect=40, shrink=0.8, pad=0.02)
    bar.set_label(f"load over an even spread (1/{data.sizes['expert']} of the slots); yellow: never used")
    left.set_xlabel("expert")
    left.set_title("Load of the experts")
    layer_ticks(left.yaxis, data)
    left.invert_yaxis()
    colours = [COLOURS[kind] for kind in kinds]
    interval = data["variation_interval"]
    right.hlines(layers, interval.sel(bound="low"), interval.sel(bound="high"), colors=colours, linewidth=1.2)
    right.scatter(data["variation"], layers, color=colours, s=14, zorder=3)
    right.set_xlim(left=0)
    right.set_xlabel("coefficient of variation\nover experts")
    right.grid(axis="x")
    name_kinds(left, kinds)
    return figure


@styled
def distinct_experts(statistics: xr.Dataset) -> Figure:
    """How many experts a window of tokens needs, by layer, beside what unrelated tokens would need.

    statistics  of stats.distinct_experts. Left: their number (dashes: unrelated tokens). Right: seen over unrelated.
    """
    data = need(statistics, "distinct_experts", "distinct", "independent", "relative")
    data = data.dropna("window", how="all", subset=["distinct"])
    kinds = kinds_of(data)
    figure = new_figure(7.5, 3.2)
    left, right = figure.subplots(1, 2)
    alpha = float(np.clip(12 / len(kinds), 0.25, 0.9))
    for place, kind in enumerate(kinds):
        here = data.isel(layer=place)
        left.plot(data["window"], here["independent"], color=GREY, linestyle=_DASHED, linewidth=0.8, alpha=alpha)
        for ax, name in ((left, "distinct"), (right, "relative")):
            ax.plot(data["window"], here[name], color=COLOURS[kind], marker="o", markersize=3, alpha=alpha)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(data["window"].values, labels=[f"{n}" for n in data["window"].values])
        ax.set_xlabel("window (tokens)")
    left.set_ylim(bottom=0)
    left.set_ylabel("distinct experts")
    left.set_title("Experts a window needs")
    right.axhline(1, color=GREY, linestyle=_DASHED, linewidth=0.8)
    right.text(1, 1, "unrelated tokens", transform=right.get_yaxis_transform(), ha="right", va="bottom", color=GREY)
    right.margins(y=0.12)
    right.set_ylabel("over those of unrelated tokens")
    name_kinds(right, kinds)
    return figure


@styled
def unused_experts(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Experts not yet used against the tokens read, a line a layer, with intervals; where most are left is named.

    statistics  of stats.unused_experts.
    """
    data = need(statistics, "unused_experts", "unused", "unused_interval", "unused_final")
    kinds, sizes = kinds_of(data), data["sample_size"]
    figure, ax = axes_of(ax, 5.5, 3.4)
    faint, strong = float(np.clip(0.6 / len(kinds), 0.04, 1)), float(np.clip(10 / len(kinds), 0.35, 0.9))
    for place, kind in enumerate(kinds):
        here = data.isel(layer=place)
        low, high = (here["unused_interval"].sel(bound=end) for end in ("low", "high"))
        ax.fill_between(sizes, low, high, color=COLOURS[kind], alpha=faint, linewidth=0)
        ax.plot(sizes, here["unused"], color=COLOURS[kind], alpha=strong, linewidth=1.0)
    ax.set_xscale("log", base=2)
    say(ax.xaxis, binary)
    ax.set_xlim(1, float(sizes[-1]))
    ax.set_ylim(bottom=0)
    ax.set_xlabel(quantity(sizes))
    ax.set_ylabel(quantity(data["unused"]))
    ax.grid(axis="y")
    ax.set_title("Experts not yet used")
    name_kinds(ax, kinds)
    left = sorted(zip(data["unused_final"].values, data["layer"].values, kinds, strict=True), reverse=True)
    named = [(float(n), f"layer {layer}: {n}", COLOURS[kind]) for n, layer, kind in left[:_NAMED] if n]
    end_labels(ax, named)
    return figure
