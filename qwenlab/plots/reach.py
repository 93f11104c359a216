"""How far back the heads of both kinds reach, side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import ATTENTION
from qwenlab.plots.drawing import binary, kinds_of, layer_ticks, layer_width, need, say
from qwenlab.plots.style import COLOURS, GREY, legend_above, name_kinds, new_figure, styled

_SHARES = (
    ("first_mass", "first token\n(share of mass)"),
    ("output_first", "first token\n(share of output)"),
    ("previous_mass", "token before\n(share of mass)"),
    ("induction", "induction\n(share of mass)"),
    ("negative", "negative\n(share of mass)"),
)

_MARKS = {
    "output_first": ("o", COLOURS[ATTENTION], "output gate on"),
    "induction": ("_", GREY, "of even weights"),
}


@styled
def reach(statistics: xr.Dataset) -> Figure:
    """The reach of every head of both kinds: a layer's heads side by side, those that reach least far first.

    statistics  of stats.reach. Above: from the distance within which the smallest share of the mass lies to that of the
    largest (50 to 90 %), on a log2 axis. Below, with intervals: the mass on the first token, the share of the output
    that the first token makes (a ring: with attention's output gate on), the mass on the token before, on what came
    after earlier occurrences of the same token (grey: what even weights would give it), and of negative weights.
    """
    data = need(statistics, "reach", "horizon", "first_mass", "induction")
    shown = [(name, label) for name, label in _SHARES if name in data]
    figure = new_figure(layer_width(data, least=6.0), 2.3 + 1.25 * len(shown))
    axes = figure.subplots(1 + len(shown), 1, sharex=True, height_ratios=[1.7, *[1] * len(shown)])
    _each_layer(data, lambda *here: _horizons(axes[0], *here))
    axes[0].set_yscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes[0].set_ylim(bottom=-0.2)
    say(axes[0].yaxis, binary)
    low, high = data["share"].values.min(), data["share"].values.max()
    axes[0].set_ylabel(f"{100 * low:.0f} to {100 * high:.0f} %\nof the mass within (tokens)")
    axes[0].set_title("Reach by head")
    name_kinds(axes[0], kinds_of(data))
    for ax, (name, label) in zip(axes[1:], shown, strict=True):
        _each_layer(data, lambda *here, ax=ax, name=name: _share(ax, name, *here))
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
        if name in _MARKS:
            marker, colour, meaning = _MARKS[name]
            mark = Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor="none", label=meaning)
            legend_above(ax, [mark])
    for ax in axes:
        ax.grid(axis="y")
    layer_ticks(axes[-1].xaxis, data)
    return figure


def _each_layer(data: xr.Dataset, draw: Callable[[xr.Dataset, np.ndarray, str, float], None]) -> None:
    """Draw the heads of each layer, the order and the place of a head the same in every panel."""
    farthest = data["share"].values.max()
    width = float(np.clip(160 / data.sizes["head"] / data.sizes["layer"], 0.6, 4.0))
    for place, kind in enumerate(kinds_of(data)):
        here = data.isel(layer=place).dropna("head", how="all", subset=["horizon"])
        here = here.isel(head=np.argsort(here["horizon"].sel(share=farthest).values, kind="stable"))
        heads = max(1, here.sizes["head"])
        x = place + 0.8 * ((np.arange(here.sizes["head"]) + 0.5) / heads - 0.5)
        draw(here, x, COLOURS[kind], width)


def _horizons(ax: Axes, here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
    ends = here["horizon"].min("share"), here["horizon"].max("share")
    ax.vlines(x, *ends, color=colour, alpha=0.9, linewidth=width)
    for end in ends:  # a mark where both ends are one
        ax.scatter(x, end, s=max(3.0, 2 * width), color=colour, linewidths=0)


def _share(ax: Axes, name: str, here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
    if here[name].isnull().all():
        return
    size = float(np.clip(4 * width, 4, 14))
    interval = here[f"{name}_interval"]
    ax.vlines(x, interval.sel(bound="low"), interval.sel(bound="high"), color=colour, linewidth=0.8, alpha=0.6)
    if name == "induction":
        ax.scatter(x, here["induction_even"], s=size, color=GREY, marker="_", linewidths=1)
    if name == "output_first" and "gated_output_first" in here and not here["gated_output_first"].isnull().all():
        ax.scatter(x, here["gated_output_first"], s=2 * size, facecolors="none", edgecolors=colour, linewidths=0.8)
    ax.scatter(x, here[name], s=size, color=colour, linewidths=0, zorder=3)
