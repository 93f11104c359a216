"""Retention of stored pairs by the label of their texts."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.octaves import octaves, positions
from qwenlab.plots.retention import SINCE, bins_of
from qwenlab.plots.style import GREY, PALETTE, new_figure, styled


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
    dim = bins_of(one)
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
        octaves(ax, positions(values, dim), SINCE[dim])
        ax.set_ylabel(title)
    axes[0].axhline(0, color=GREY, linewidth=0.6)
    axes[0].set_title("Survival")
    axes[1].set_title("Retrieval error")
    axes[1].axhline(1, color="black", linewidth=0.8, linestyle="--")
    lines = [*axes[1].get_legend_handles_labels()[0]]
    nothing = Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="as of nothing given back")
    figure.legend(handles=[*lines, nothing], loc="outside upper right", ncols=len(lines) + 1)
    return figure
