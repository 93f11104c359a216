"""States of DeltaNet heads along their texts."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.plots.base.depth import layer_bar, layer_shades
from qwenlab.plots.base.drawing import binary, layer_ticks, need, quantity, say
from qwenlab.plots.base.heads import dots, fit_log, side_by_side
from qwenlab.plots.base.octaves import octave_of, octaves, positions
from qwenlab.plots.style import GREY, new_figure, styled


@styled
def state_growth(statistics: xr.Dataset) -> Figure:
    """How large states get along a text, and how much of them a token rewrites: a line a layer, over position.

    statistics  of stats.state_growth. Lines: the median over a layer's heads, light for the first layers, dark for the
    last; grey: the middle half of all heads.
    """
    data = need(statistics, "state_growth", "norm", "rewrite")
    figure = new_figure(7.2, 2.9)
    left, right = figure.subplots(1, 2)
    for ax, name, title in ((left, "norm", "Size of the state"), (right, "rewrite", "Rewritten by a token")):
        _by_layer(ax, data[name])
        ax.set_yscale("log", base=2)
        say(ax.yaxis, binary)
        ax.set_ylabel(quantity(data[name]))
        ax.set_title(title)
    left.set_ylabel("norm of the state")
    right.set_ylabel("change over norm, a token")
    layer_bar(figure, [left, right], data)
    return figure


@styled
def state_rank(statistics: xr.Dataset) -> Figure:
    """Over how many directions states spread along a text: a line a layer, over position.

    statistics  of stats.state_rank, by position. Lines and grey as in `state_growth`; dashed: the rank of a full state.
    """
    data = need(statistics, "state_rank", "effective_rank", "stable_rank", "position_bin")
    figure = new_figure(7.2, 2.9)
    axes = figure.subplots(1, 2, sharey=True)
    full = int(data["full_rank"])
    for ax, name, title in zip(axes, ("effective_rank", "stable_rank"), ("Effective rank", "Stable rank"), strict=True):
        _by_layer(ax, data[name])
        ax.axhline(full, color="black", linewidth=0.8, linestyle="--")
        ax.set_yscale("log", base=2)
        ax.set_ylim(0.9, 1.25 * full)
        say(ax.yaxis, binary)
        ax.set_title(title)
    axes[0].set_ylabel("rank of the state (directions)")
    axes[0].legend(handles=[_full(data)], loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.3)
    layer_bar(figure, list(axes), data)
    return figure


@styled
def state_by_head(statistics: xr.Dataset) -> Figure:
    """What the states of heads are like: a mark a head with its interval, a panel each for ranks, norm and rewriting.

    statistics  of stats.state_rank and stats.state_growth, merged, at one octave of position. Heads stand in each layer
                by their effective rank; dashed: the rank of a full state. Raises BadArgument for several octaves.
    """
    names = ("effective_rank", "stable_rank", "norm", "rewrite")
    data = need(statistics, "state_rank", *names, "full_rank")
    data = octave_of(data)
    figure = new_figure(8.4, 4.4)
    axes = figure.subplots(2, 2, sharex=True)
    titles = ("Effective rank", "Stable rank", "Norm of the state", "Rewritten by a token")
    for ax, name, title in zip(axes.flat, names, titles, strict=True):

        def draw(here: xr.Dataset, x: np.ndarray, colour: str, width: float, ax: Axes = ax, name: str = name) -> None:
            dots(ax, here, name, x, colour, width)

        side_by_side(data, data["effective_rank"], draw)
        fit_log(ax, data, name, *([int(data["full_rank"])] if name.endswith("rank") else []))
        ax.set_title(title)
        ax.grid(axis="y")
    for ax in axes[0]:
        ax.axhline(int(data["full_rank"]), color="black", linewidth=0.8, linestyle="--")
        ax.set_ylabel("directions")
    axes[1, 0].set_ylabel("norm")
    axes[1, 1].set_ylabel("change over norm, a token")
    for ax in axes[1]:
        layer_ticks(ax.xaxis, data)
        ax.set_xlabel("DeltaNet layer")
    axes[0, 1].legend(handles=[_full(data)], loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.3)
    return figure


def _by_layer(ax: Axes, values: xr.DataArray) -> None:
    """The median over heads of values [layer, head, position_bin], a line a layer; and the middle half of all heads."""
    values = values.dropna("position_bin", how="all")
    x = positions(values)
    low, high = values.quantile([0.25, 0.75], ["layer", "head"]).transpose("quantile", "position_bin")
    ax.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0)
    for colour, layer in zip(layer_shades(values), values["layer"].values, strict=True):
        ax.plot(x, values.sel(layer=layer).median("head"), color=colour, marker="o", markersize=2.5, linewidth=1.2)
    octaves(ax, x, "position in the text (tokens)")


def _full(data: xr.Dataset) -> Line2D:
    """The entry of a legend for the rank of a full state."""
    return Line2D([], [], color="black", linewidth=0.8, linestyle="--", label=f"full: {int(data['full_rank'])}")
