"""Where attention heads look."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import (
    binary,
    kinds_of,
    layer_ticks,
    layer_width,
    need,
    quantiles_by_head,
    say,
)
from qwenlab.plots.style import GREY, PALETTE, name_kinds, new_figure, styled

_TARGETS = (("first_mass", PALETTE[0], "o"), ("previous_mass", PALETTE[1], "^"), ("self_mass", GREY, "s"))


@styled
def attention_distance(statistics: xr.Dataset) -> Figure:
    """How far back every attention head looks, and what it gives to the usual targets.

    statistics  of stats.attention_distance. Above: the distance within which a share of the attention lies, by head,
    as in `half_life`. Below: mean attention on the first token, the token before and the token itself, a mark a head.
    """
    names = [name for name, _, _ in _TARGETS]
    data = need(statistics, "attention_distance", "distance_quantile", *names)
    figure = new_figure(layer_width(data, least=5.5), 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    quantiles_by_head(above, data["distance_quantile"])
    above.set_yscale("symlog", base=2, linthresh=1, linscale=0.5)
    above.set_ylim(bottom=-0.2)
    say(above.yaxis, binary)
    above.set_ylabel("distance back (tokens)")
    above.grid(axis="y")
    name_kinds(above, kinds_of(data))
    above.set_title("Attention by distance, by head")
    places = np.arange(data.sizes["layer"])
    for offset, (name, colour, marker) in zip((-0.25, 0, 0.25), _TARGETS, strict=True):
        label = data[name].attrs["long_name"].removeprefix("attention on ")
        for head in data["head"].values:
            mass = data[name].sel(head=head)
            below.scatter(places + offset, mass, s=9, color=colour, marker=marker, linewidths=0, alpha=0.7, label=label)
            label = "_" + label
    below.set_ylim(bottom=0)
    below.set_ylabel("attention (share)")
    below.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, columnspacing=1.2, handletextpad=0.2)
    layer_ticks(below.xaxis, data)
    return figure
