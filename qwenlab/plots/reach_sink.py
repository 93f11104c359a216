"""The first token's share in attention heads."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import layer_ticks, layer_width, need
from qwenlab.plots.base.heads import dash, dashes, dots, side_by_side
from qwenlab.plots.style import legend_above, new_figure, styled

_PANELS = {
    "first_mass": "of the mass",
    "output_first": "of the output,\ngate off",
    "gated_output_first": "of the output,\ngate on",
}


@styled
def sink(statistics: xr.Dataset) -> Figure:
    """The first token's share in every attention head: of the mass, of the output, and of the output behind the gate.

    statistics  of stats.reach. A layer's heads stand side by side, those with the least mass on it first, with
    intervals. Grey: the mass of even weights.
    """
    data = need(statistics, "reach", "gated_output_first", "first_mass", "output_first")
    data = data.sel(layer=data["gated_output_first"].notnull().any("head"))
    figure = new_figure(layer_width(data, least=4.5), 4.6)
    axes = figure.subplots(3, 1, sharex=True, sharey=True)
    for ax, (name, label) in zip(axes, _PANELS.items(), strict=True):
        side_by_side(data, data["first_mass"], lambda *here, ax=ax, name=name: dots(ax, here[0], name, *here[1:]))
        ax.set_ylabel(label)
        ax.grid(axis="y")
    axes[0].set_title("First token's share")
    if "first_even" in data:
        side_by_side(data, data["first_mass"], lambda here, x, _, width: dashes(axes[0], here, "first_even", x, width))
        legend_above(axes[0], [dash("of even weights")])
    axes[0].set_ylim(bottom=0)
    figure.align_ylabels(list(axes))
    layer_ticks(axes[-1].xaxis, data)
    return figure
