"""Co-activation of experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import chosen_layers, need, times_bar
from qwenlab.plots.base.panels import ManyAxes, panels
from qwenlab.plots.style import COLOURS, DIVERGING, LABELS, style

_SHOWN = 8  # layers in one figure
_COLUMNS = 4


@style()
def coactivation(statistics: xr.Dataset, *, layers: Sequence[int] | None = None, axes: ManyAxes = None) -> Figure:
    """Co-activation of every two experts relative to chance: one square per layer.

    statistics  of stats.coactivation. Green: more often than their loads explain; purple: less often; grey: fewer than
                one token expected, too few to tell
    layers      which to draw; by default all, or eight spread over the depth. Raises BadArgument for others
    """
    data = need(statistics, "coactivation", "lift", "expected")
    chosen = chosen_layers(data, layers)
    if layers is None:
        chosen = [chosen[place] for place in np.unique(np.linspace(0, len(chosen) - 1, _SHOWN).round().astype(int))]
    rows, columns = -(-len(chosen) // _COLUMNS), min(_COLUMNS, len(chosen))
    size = 1.2 + 2.1 * columns, 0.5 + 2.15 * rows
    shown = panels(axes, (rows, columns), *size, count=len(chosen), sharex=True, sharey=True)
    for ax, layer in zip(shown.axes, chosen, strict=True):
        here = data.sel(layer=layer)
        lift = here["lift"].where(here["expected"] >= 1).transpose("expert_2", "expert").clip(1e-3)
        norm = LogNorm(1 / 8, 8)
        mesh = ax.pcolormesh(here["expert"], here["expert_2"], lift, cmap=DIVERGING, norm=norm, rasterized=True)
        ax.set_facecolor("0.8")
        ax.set_aspect("equal")
        ax.set_ylim(data.sizes["expert"] - 0.5, -0.5)
        kind = str(here["kind"].values)
        ax.set_title(f"layer {layer} · {LABELS[kind]}", color=COLOURS[kind])
    shown.label_outer("expert", "expert")
    times_bar(mesh, shown.axes, "co-activation / chance", location="right", shrink=0.8, aspect=30)
    return shown.figure
