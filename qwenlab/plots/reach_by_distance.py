"""Mass by distance, head by head."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import KINDS
from qwenlab.plots.base.drawing import binary, kinds_of, need, say
from qwenlab.plots.style import COLOURS, GREY, LABELS, legend_above, new_figure, shades, styled

_COMPARED = (
    ("horizon", "horizon (tokens)"),
    ("entropy", "entropy (nats)"),
    ("first_mass", "first token (share)"),
    ("previous_mass", "token before (share)"),
    ("induction_lift", "induction / even"),
    ("negative", "negative (share)"),
)


@styled
def mass_by_distance(statistics: xr.Dataset) -> Figure:
    """How much of a head's mass lies within a distance: a thin line a head, each kind in a panel; dark: their median.

    statistics  of stats.reach. Dashed: the shares by which the horizons are told.
    """
    data = need(statistics, "reach", "mass_share", "horizon")
    kinds = [kind for kind in KINDS if kind in kinds_of(data)]
    figure = new_figure(0.6 + 3.3 * len(kinds), 2.9)
    lower = data["distance_bin"].values
    farthest = np.append(lower[1:] - 1, lower[-1])  # the last distance of each bin
    reached = data["mass_share"].max([dim for dim in data["mass_share"].dims if dim != "distance_bin"]).values > 0
    end = 1 + int(np.flatnonzero(reached).max(initial=0))
    for ax, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        share = data["mass_share"].sel(layer=data["kind"].values == kind).stack(one=["layer", "head"])
        within = share.dropna("one").transpose("distance_bin", "one").cumsum("distance_bin")[:end]
        ax.plot(farthest[:end], within, color=COLOURS[kind], linewidth=0.7, alpha=0.6)
        ax.plot(farthest[:end], within.median("one"), color=shades(kind)(1.0), linewidth=1.8)
        for horizon in data["share"].values:
            ax.axhline(horizon, color=GREY, linewidth=0.7, linestyle="--", zorder=0)
        ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        ax.set_xlim(-0.1, farthest[end - 1])
        ax.set_ylim(0, 1.02)
        say(ax.xaxis, binary)
        ax.set_xlabel("distance (tokens)")
        ax.set_title(LABELS[kind])
        middle = Line2D([], [], color=shades(kind)(1.0), linewidth=1.8, label=f"median of {within.sizes['one']} heads")
        legend_above(ax, [middle])
    figure.axes[0].set_ylabel("mass within (share)")
    return figure
