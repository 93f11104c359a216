"""What states of DeltaNet heads still know of stored pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.octaves import octaves, positions
from qwenlab.plots.style import COLOURS, GREY, PALETTE, new_figure, styled

_SINCE = {"distance_bin": "tokens since it was stored", "writes_bin": "pairs written since (sum of β)"}


@styled
def retention(statistics: xr.Dataset, *, layers: Sequence[int] | None = None) -> Figure:
    """What is left of a stored pair, by how long ago it was stored: a panel a layer, a line a head.

    statistics  of stats.retention, by distance or by writes. Thin: survival by head; thick: that of the median head;
                dashed: what decay alone would have left, in the median head. Cut at -0.25
    layers      only these
    """
    data = need(statistics, "retention", "survival", "decay_alone")
    chosen = data["layer"].values.tolist() if layers is None else list(layers)
    if missing := sorted(set(chosen) - set(data["layer"].values.tolist())):
        raise BadArgument(f"layers={missing}: these statistics have layers {data['layer'].values.tolist()}.")
    dim = _since(data)
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
        ax.plot(x, here["survival"].median("head"), color=COLOURS[DELTANET], linewidth=2)
        ax.plot(x, here["decay_alone"].median("head"), color="black", linewidth=1, linestyle="--")
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_title(f"layer {layer}", fontsize=8)
        ax.set_ylim(-0.25, 1.1)
        octaves(ax, x, "", ticks=4)
    figure.supxlabel(_SINCE[dim], fontsize=9)
    figure.supylabel("left of the stored value", fontsize=9)
    _name_lines(figure)
    return figure


@styled
def retention_by_label(statistics: xr.Dataset) -> Figure:
    """What is left of stored pairs, and the retrieval error, by how long ago they were stored: a colour a label.

    statistics  of stats.retention(recording, by_label=True), by distance or by writes. Lines: the median over all
                heads; pale: the middle half of them. Raises BadArgument where labels are more than colours.
    """
    made = "Draw what qwenlab.stats.retention(recording, by_label=True) returns."
    labelled = isinstance(statistics, xr.Dataset) and "label" in statistics.dims
    one = need(statistics.isel(label=0) if labelled else statistics, "retention", "survival", "error")
    if not labelled:
        raise BadArgument(f"These statistics are of all labels together.\n{made}")
    if statistics.sizes["label"] > len(PALETTE):
        labels = [str(label) for label in statistics["label"].values]
        raise BadArgument(f"{len(labels)} labels, {len(PALETTE)} colours.\nPick some: .sel(label={labels[:2]}).")
    dim = _since(one)
    figure = new_figure(7.2, 3.0)
    axes = figure.subplots(1, 2)
    panels = (("survival", "left of the stored value"), ("error", "error over the value's norm"))
    for ax, (name, title) in zip(axes, panels, strict=True):
        values = statistics[name].dropna(dim, how="all")
        for colour, label in zip(PALETTE, values["label"].values, strict=False):
            here = values.sel(label=label).dropna(dim, how="all")
            x = positions(here, dim)
            low, middle, high = here.quantile([0.25, 0.5, 0.75], ["layer", "head"])
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, middle, color=colour, marker="o", markersize=2.5, label=str(label))
        octaves(ax, positions(values, dim), _SINCE[dim])
        ax.set_ylabel(title)
    axes[0].axhline(0, color=GREY, linewidth=0.6)
    axes[0].set_title("Survival")
    axes[1].set_title("Retrieval error")
    axes[1].axhline(1, color="black", linewidth=0.8, linestyle="--")
    lines = [*axes[1].get_legend_handles_labels()[0]]
    nothing = Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="as of nothing given back")
    figure.legend(handles=[*lines, nothing], loc="outside upper right", ncols=len(lines) + 1)
    return figure


def _since(data: xr.Dataset) -> str:
    """The bins of statistics of stored pairs. Raises MissingVariable where there are none."""
    found = [dim for dim in _SINCE if dim in data.dims]
    if not found:
        raise MissingVariable(
            "These statistics have no bins: they are of all pairs asked for.\n"
            "Draw what qwenlab.stats.retention(recording, by='distance') returns."
        )
    return found[0]


def _name_lines(figure: Figure) -> None:
    """Above all panels: what is drawn how."""
    blue = COLOURS[DELTANET]
    lines = (
        Line2D([], [], color=blue, linewidth=2, label="median"),
        Line2D([], [], color=blue, linewidth=0.8, alpha=0.5, label="head"),
        Line2D([], [], color="black", linewidth=1, linestyle="--", label="decay alone"),
    )
    figure.legend(handles=lines, loc="outside upper right", ncols=3, columnspacing=1.2, handletextpad=0.4)
