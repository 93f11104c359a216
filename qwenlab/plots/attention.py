"""Distance of attention, by head."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.heads import quantiles_by_head
from qwenlab.plots.base.panels import ManyAxes, layer_width, name_kinds, panels
from qwenlab.plots.base.ticks import binary_scale
from qwenlab.plots.style import GREY, PALETTE, style

_TARGETS = (("first_mass", PALETTE[0], "o"), ("previous_mass", PALETTE[1], "^"), ("self_mass", GREY, "s"))


@style()
def attention_distance(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Attention of every head by distance, and its mean on the usual targets.

    statistics  of stats.attention_distance

    Above: the distance within which a share of the attention is, by head, as in `half_life`. Below: mean attention on
    the first token, the previous token and the token itself, one mark per head.
    """
    names = [name for name, _, _ in _TARGETS]
    data = need(statistics, "attention_distance", "distance_quantile", *names)
    shown = panels(axes, (2, 1), layer_width(data, least=5.5), 4.6, sharex=True, height_ratios=[3, 2])
    above, below = shown.axes
    quantiles_by_head(above, data["distance_quantile"])
    binary_scale(above.yaxis, zero=True)
    above.set(title="Attention by distance, by head", ylabel="distance back (tokens)", ylim=(-0.2, None))
    above.grid(axis="y")
    name_kinds(above, data)
    layers = np.arange(data.sizes["layer"])
    for offset, (name, colour, marker) in zip((-0.25, 0, 0.25), _TARGETS, strict=True):
        label = data[name].attrs["long_name"].removeprefix("attention on ")
        for head in data["head"].values:
            mass = data[name].sel(head=head)
            below.scatter(layers + offset, mass, s=9, color=colour, marker=marker, linewidths=0, alpha=0.7, label=label)
            label = "_" + label
    below.set(ylabel="attention (share)", ylim=(0, None))
    below.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, columnspacing=1.2, handletextpad=0.2)
    shown.layers(data)
    return shown.figure
