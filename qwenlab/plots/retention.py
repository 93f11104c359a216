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
from qwenlab.plots.style import COLOURS, GREY, new_figure, styled

SINCE = {"distance_bin": "tokens since it was stored", "writes_bin": "pairs written since (sum of β)"}


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
    dim = bins_of(data)
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
    figure.supxlabel(SINCE[dim], fontsize=9)
    figure.supylabel("left of the stored value", fontsize=9)
    _name_lines(figure)
    return figure


def bins_of(data: xr.Dataset) -> str:
    """The dim of the bins of these statistics. Raises MissingVariable where there is none."""
    found = [dim for dim in SINCE if dim in data.dims]
    if not found:
        raise MissingVariable(
            "These statistics have no bins: they are of all queried pairs.\n"
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
