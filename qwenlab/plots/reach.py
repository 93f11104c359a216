"""How far back the heads of both kinds reach, side by side."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.checkpoint.families import ATTENTION
from qwenlab.plots.base.drawing import binary, kinds_of, layer_ticks, layer_width, need, say
from qwenlab.plots.base.heads import dash, dashes, dots, ring, rings, side_by_side
from qwenlab.plots.style import COLOURS, legend_above, name_kinds, new_figure, styled

_BELOW = (
    ("entropy", "entropy\n(nats)"),
    ("first_mass", "first token\n(share of mass)"),
    ("output_first", "first token\n(share of output)"),
    ("previous_mass", "token before\n(share of mass)"),
    ("induction", "induction\n(share of mass)"),
    ("negative", "negative\n(share of mass)"),
)

_EVEN = {"first_mass": "first_even", "induction": "induction_even"}
_GATED = {"output_first": "gated_output_first"}


@styled
def reach(statistics: xr.Dataset) -> Figure:
    """The reach of every head of both kinds: a layer's heads side by side, those that reach least far first.

    statistics  of stats.reach. Above: from the distance within which the smallest share of the mass lies to that of the
    largest (50 to 90 %), on a log2 axis. Below, with intervals: the entropy of the mass, the mass on the first token,
    the share of the output that the first token makes (a ring: with attention's output gate on), the mass on the token
    before, on what came after earlier occurrences of the same token, and of negative weights. Grey: what even weights
    would give.
    """
    data = need(statistics, "reach", "horizon", "first_mass", "induction")
    shown = [(name, label) for name, label in _BELOW if name in data]
    figure = new_figure(layer_width(data, least=6.0), 2.3 + 1.25 * len(shown))
    axes = figure.subplots(1 + len(shown), 1, sharex=True, height_ratios=[1.7, *[1] * len(shown)])
    side_by_side(data, _order(data), lambda *here: _horizons(axes[0], *here))
    axes[0].set_yscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes[0].set_ylim(bottom=-0.2)
    say(axes[0].yaxis, binary)
    low, high = data["share"].values.min(), data["share"].values.max()
    axes[0].set_ylabel(f"{100 * low:.0f} to {100 * high:.0f} %\nof the mass within (tokens)")
    axes[0].set_title("Reach by head")
    name_kinds(axes[0], kinds_of(data), dash("of even weights"))
    for ax, (name, label) in zip(axes[1:], shown, strict=True):
        side_by_side(data, _order(data), lambda *here, ax=ax, name=name: _share(ax, name, *here))
        ax.set_ylabel(label)
        ax.set_ylim(0, 1 if name == "negative" else None)
        if _GATED.get(name) in data:
            legend_above(ax, [ring(COLOURS[ATTENTION], "output gate on")])
    for ax in axes:
        ax.grid(axis="y")
    figure.align_ylabels(list(axes))
    layer_ticks(axes[-1].xaxis, data)
    return figure


def _order(data: xr.Dataset) -> xr.DataArray:
    """By what the heads of a layer are put side by side: how far the largest share of their mass reaches."""
    return data["horizon"].sel(share=data["share"].values.max(), drop=True)


def _horizons(ax: Axes, here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
    ends = here["horizon"].min("share"), here["horizon"].max("share")
    ax.vlines(x, *ends, color=colour, alpha=0.9, linewidth=width)
    for end in ends:  # a mark where both ends are one
        ax.scatter(x, end, s=max(3.0, 2 * width), color=colour, linewidths=0)


def _share(ax: Axes, name: str, here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
    even, gated = _EVEN.get(name, ""), _GATED.get(name, "")
    if even in here:
        dashes(ax, here, even, x, width)
    if gated in here:
        rings(ax, here, gated, x, colour, width)
    dots(ax, here, name, x, colour, width)
