"""States of DeltaNet heads along their texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.plots.drawing import binary, need, quantity, say
from qwenlab.plots.style import COLOURS, GREY, PALETTE, axes_of, legend_above, new_figure, shades, styled


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
    _layer_bar(figure, [left, right], data)
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
    axes[0].legend(
        handles=[Line2D([], [], color="black", linewidth=0.8, linestyle="--", label=f"full: {full}")],
        loc="lower right",
        bbox_to_anchor=(1, 1.0),
        borderaxespad=0.3,
    )
    _layer_bar(figure, list(axes), data)
    return figure


@styled
def state_precision(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """How far states in low precision stray along a text: a line a format, the median of all heads over position.

    statistics  of stats.state_precision. Pale: the middle half of the heads; thin: the head that strays furthest.
    """
    data = need(statistics, "state_precision", "error", "format")
    figure, ax = axes_of(ax, 4.6, 3.2)
    error = data["error"].dropna("position_bin", how="all")
    x = positions(error)
    for colour, format in zip(PALETTE, error["format"].values, strict=False):
        here = error.sel(format=format)
        low, middle, high, most = here.quantile([0.25, 0.5, 0.75, 1], ["layer", "head"]).transpose("quantile", ...)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, middle, color=colour, marker="o", markersize=2.5, label=str(format))
        ax.plot(x, most, color=colour, linewidth=0.7)
    octaves(ax, x, "position in the text (tokens)")
    ax.set_yscale("log")
    ax.set_ylabel("error of the state, of its norm")
    legend_above(ax, ax.get_lines()[::2])
    ax.set_title("States in low precision", pad=22)
    return figure


def _by_layer(ax: Axes, values: xr.DataArray) -> None:
    """The median over heads of values [layer, head, position_bin], a line a layer; and the middle half of all heads."""
    values = values.dropna("position_bin", how="all")
    x = positions(values)
    low, high = values.quantile([0.25, 0.75], ["layer", "head"]).transpose("quantile", "position_bin")
    ax.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0)
    for colour, layer in zip(_colours(values), values["layer"].values, strict=True):
        ax.plot(x, values.sel(layer=layer).median("head"), color=colour, marker="o", markersize=2.5, linewidth=1.2)
    octaves(ax, x, "position in the text (tokens)")


def positions(values: xr.DataArray | xr.Dataset, dim: str = "position_bin") -> np.ndarray:
    """Where bins by octave are drawn: 0, 1, and the middle of each octave."""
    edges = values[dim].values.astype(float)
    return np.where(edges > 1, edges * 2**0.5, edges)


def octaves(ax: Axes, x: np.ndarray, label: str, ticks: int = 8) -> None:
    """An axis of whole numbers by octave, with a place for 0 where there is one among these."""
    powers = 2.0 ** np.arange(np.floor(np.log2(max(x.max(initial=1), 1))) + 1)
    powers = powers[powers >= x.min()] if x.size else powers
    powers = powers[:: max(1, -(-len(powers) // ticks))]
    if (x < 1).any():
        ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        ax.set_xlim(left=-0.2)
        powers = np.append(0, powers)
    else:
        ax.set_xscale("log", base=2)
    ax.set_xticks(powers)
    say(ax.xaxis, binary)
    ax.set_xlabel(label)
    ax.grid(axis="y")


def _colours(values: xr.Dataset | xr.DataArray) -> np.ndarray:
    """A colour a layer, DeltaNet's, light to dark."""
    return np.asarray(shades(DELTANET)(np.linspace(0.3, 1.0, values.sizes["layer"])))


def _layer_bar(figure: Figure, axes: list[Axes], data: xr.Dataset) -> None:
    """Which colour is which layer."""
    layers = data["layer"].values
    count = len(layers)
    shown = ListedColormap(_colours(data))
    bar = figure.colorbar(ScalarMappable(Normalize(-0.5, count - 0.5), shown), ax=axes, pad=0.02, aspect=30)
    step = -(-count // 10)
    bar.set_ticks(range(0, count, step), labels=[str(layer) for layer in layers[::step]])
    bar.minorticks_off()
    bar.set_label("DeltaNet layer")


@styled
def retention(statistics: xr.Dataset, *, layers: Sequence[int] | None = None) -> Figure:
    """What is left of a stored pair, by how long ago it was stored: a panel a layer, a line a head.

    statistics  of stats.retention, by distance or by writes. Lines: survival by head; dashed: what decay alone would
                have left, mean over heads; the gap between its heads' mean (thick) and that was overwritten
    layers      only these
    """
    data = need(statistics, "retention", "survival", "decay_alone")
    chosen = data["layer"].values.tolist() if layers is None else list(layers)
    if missing := sorted(set(chosen) - set(data["layer"].values.tolist())):
        raise BadArgument(f"layers={missing}: these statistics have layers {data['layer'].values.tolist()}.")
    dim = "distance_bin" if "distance_bin" in data.dims else "writes_bin"
    columns = min(len(chosen), 4)
    rows = -(-len(chosen) // columns)
    figure = new_figure(1.2 + 1.9 * columns, 0.7 + 1.7 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, column in np.argwhere(np.arange(axes.size).reshape(axes.shape) >= len(chosen)):
        axes[row, column].remove()
        axes[row - 1, column].tick_params(labelbottom=True)
    shown = data.dropna(dim, how="all", subset=["survival"])
    x = positions(shown, dim)
    for ax, layer in zip(axes.flat, chosen, strict=False):
        here = shown.sel(layer=layer)
        for head in here["head"].values:
            ax.plot(x, here["survival"].sel(head=head), color=COLOURS[DELTANET], alpha=0.35, linewidth=0.8)
        ax.plot(x, here["survival"].mean("head"), color=COLOURS[DELTANET], linewidth=2)
        ax.plot(x, here["decay_alone"].mean("head"), color="black", linewidth=1, linestyle="--")
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_title(f"layer {layer}", fontsize=8)
        ax.set_ylim(-0.25, 1.1)
        octaves(ax, x, "", ticks=4)
    figure.supxlabel("tokens since it was stored" if dim == "distance_bin" else "pairs written since", fontsize=9)
    figure.supylabel("left of the stored value", fontsize=9)
    _name_lines(figure)
    return figure


def _name_lines(figure: Figure) -> None:
    """Above all panels: what is drawn how."""
    blue = COLOURS[DELTANET]
    lines = (
        Line2D([], [], color=blue, linewidth=2, label="mean"),
        Line2D([], [], color=blue, linewidth=0.8, alpha=0.5, label="head"),
        Line2D([], [], color="black", linewidth=1, linestyle="--", label="decay alone"),
    )
    figure.legend(handles=lines, loc="outside upper right", ncols=3, columnspacing=1.2, handletextpad=0.4)
