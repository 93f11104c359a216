"""Size, rank and change of DeltaNet states along their texts."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.heads import draw_heads, fit_log, layer_bar, layer_shades
from qwenlab.plots.base.panels import ManyAxes, legend_above, panels, stroke
from qwenlab.plots.base.ticks import binary_scale, octave_of, octaves, positions, two_ticks
from qwenlab.plots.style import GREY, style

_PANELS = {
    "effective_rank": ("Effective rank", "directions"),
    "stable_rank": ("Stable rank", "directions"),
    "norm": ("Norm of the state", "norm"),
    "rewrite": ("Change per token", "change / norm"),
}


@style()
def state_growth(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Norm of states along a text, and its relative change per token: one line per layer, by position.

    statistics  of stats.state_growth. Lines: the median over a layer's heads, light for the first layers, dark for the
                last; grey: the middle half of all heads
    axes        two, side by side
    """
    data = need(statistics, "state_growth", "norm", "rewrite")
    shown = panels(axes, (1, 2), 7.2, 2.9)
    for ax, name in zip(shown.axes, ("norm", "rewrite"), strict=True):
        _by_layer(ax, data[name])
        two_ticks(ax)
        ax.set(title=_PANELS[name][0], ylabel=_PANELS[name][1])
    layer_bar(shown.axes, data)
    return shown.figure


@style()
def state_rank(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Rank of states along a text: one line per layer, by position.

    statistics  of stats.state_rank, by position. Lines and grey as in `state_growth`; dashed: the rank of a full state
    axes        two, side by side
    """
    data = need(statistics, "state_rank", "effective_rank", "stable_rank", "position_bin")
    shown = panels(axes, (1, 2), 7.2, 2.9, sharey=True)
    full = int(data["full_rank"])
    for ax, name in zip(shown.axes, ("effective_rank", "stable_rank"), strict=True):
        _by_layer(ax, data[name])
        ax.axhline(full, color="black", linewidth=0.8, linestyle="--")
        ax.set(title=_PANELS[name][0], ylim=(0.9, 1.25 * full))
    shown.axes[0].set_ylabel("rank of the state (directions)")
    legend_above(shown.axes[0], [_full(full)])
    layer_bar(shown.axes, data)
    return shown.figure


@style()
def state_by_head(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """States of heads: one mark per head with its interval, one panel each for both ranks, norm and relative change.

    statistics  of stats.state_rank and stats.state_growth, merged, at one octave of position. Raises BadArgument for
                several octaves
    axes        four, row by row

    Heads of a layer are sorted by their effective rank. Dashed: the rank of a full state.
    """
    data = octave_of(need(statistics, "state_rank", *_PANELS, "full_rank"))
    shown = panels(axes, (2, 2), 8.4, 4.4, sharex=True, grid="y")
    full = int(data["full_rank"])
    for ax, (name, (title, label)) in zip(shown.axes, _PANELS.items(), strict=True):
        draw_heads(ax, data, data["effective_rank"], name)
        fit_log(ax, data, name, *([full] if name.endswith("rank") else []))
        ax.set(title=title, ylabel=label)
    for ax in shown.axes[:2]:
        ax.axhline(full, color="black", linewidth=0.8, linestyle="--")
    shown.layers(data, "DeltaNet layer")
    legend_above(shown.axes[1], [_full(full)])
    return shown.figure


def _by_layer(ax: Axes, values: xr.DataArray) -> None:
    """Draw values [layer, head, position_bin]: the median head of each layer, and the middle half of all heads."""
    values = values.dropna("position_bin", how="all")
    x = positions(values)
    low, high = values.quantile([0.25, 0.75], ["layer", "head"]).transpose("quantile", "position_bin")
    ax.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0)
    for colour, layer in zip(layer_shades(values), values["layer"].values, strict=True):
        ax.plot(x, values.sel(layer=layer).median("head"), color=colour, marker="o", markersize=2.5, linewidth=1.2)
    octaves(ax, x, "position in the text (tokens)")
    binary_scale(ax.yaxis)


def _full(rank: int) -> Line2D:
    """Return the legend entry of a full state's rank."""
    return stroke(f"full: {rank}", "black", style="--")
