"""Loss of stored values by decay and by later writes, head by head."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.plots.base.depth import layer_bar, layer_shades
from qwenlab.plots.base.drawing import binary, need, say
from qwenlab.plots.style import GREY, legend_above, new_figure, styled


@styled
def interference(statistics: xr.Dataset) -> Figure:
    """What takes a stored value away, head by head: decay, or later writes; and whether keys that are alike explain it.

    statistics  of stats.half_life, stats.retention(recording, by=None) and stats.key_collision, merged. Left, over the
                half-life of the decay: rings, what decay alone leaves; dots, what is left; the line between them was
                overwritten (dashed where writes added). Right: that line over the key collision of the head's keys;
                dotted: keys spread evenly. Light for the first layers, dark for the last.
    """
    names = ("half_life_mean_log", "survival", "decay_alone", "overwritten", "overwritten_interval")
    data = need(statistics, "retention", *names, "key_collision", "isotropic_floor")
    group = data.sizes["head"] // data.sizes["key_head"]
    own = xr.DataArray(np.arange(data.sizes["head"]) // group, dims="head")
    collision = data["key_collision"].isel(key_head=own)
    figure = new_figure(7.4, 3.1)
    left, right = figure.subplots(1, 2)
    for place, colour in enumerate(layer_shades(data)):
        here = data.isel(layer=place)
        life, kept, decayed = here["half_life_mean_log"], here["survival"], here["decay_alone"]
        for style, some in (("-", decayed > kept), ("--", decayed <= kept)):
            chosen = np.flatnonzero(some)
            left.vlines(
                life[chosen], kept[chosen], decayed[chosen], color=colour, linewidth=0.8, alpha=0.7, linestyle=style
            )
        left.scatter(life, decayed, s=16, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=3)
        left.scatter(life, kept, s=14, color=colour, linewidths=0, zorder=4)
        ends, across = here["overwritten_interval"], collision.isel(layer=place)
        right.vlines(across, ends.sel(bound="low"), ends.sel(bound="high"), color=colour, linewidth=0.8, alpha=0.6)
        right.scatter(across, here["overwritten"], s=14, color=colour, linewidths=0, zorder=3)
    for ax in (left, right):
        ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
        ax.grid(axis="y")
    left.set_xscale("log", base=2)
    say(left.xaxis, binary)
    left.set_xlabel("half-life of the decay (tokens)")
    left.set_ylabel("left of the stored value")
    right.axvline(float(data["isotropic_floor"]), color=GREY, linewidth=0.8, linestyle=":")
    right.set_xlim(0, 1)
    right.set_xlabel("key collision (squared cosine)")
    right.set_ylabel("overwritten")
    ring = Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor="white", label="decay alone")
    legend_above(left, [ring, Line2D([], [], color="black", marker="o", linestyle="", label="left")])
    left.set_title("What is left")
    right.set_title("What writes took")
    layer_bar(figure, [left, right], data)
    return figure
