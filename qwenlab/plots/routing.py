"""Which experts go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need, times_bar
from qwenlab.plots.style import COLOURS, DIVERGING, LABELS, new_figure, styled

_SHOWN = 8  # layers in one figure
_ACROSS = 4


@styled
def coactivation(statistics: xr.Dataset, *, layers: Sequence[int] | None = None) -> Figure:
    """How much more often than by chance two experts are chosen together, a square a layer.

    statistics  of stats.coactivation. Green: more often than their loads explain; purple: less often; grey: fewer than
                one token expected, too few to say.
    layers      which to draw; by default all of them, or eight spread over the depth. Raises BadArgument for others.
    """
    data = need(statistics, "coactivation", "lift", "expected")
    held = data["layer"].values.tolist()
    if unknown := [layer for layer in layers or () if layer not in held]:
        raise BadArgument(f"layers={unknown}: these statistics have layers {held}.")
    shown = list(layers or np.asarray(held)[np.unique(np.linspace(0, len(held) - 1, _SHOWN).round().astype(int))])
    rows, columns = -(-len(shown) // _ACROSS), min(_ACROSS, len(shown))
    figure = new_figure(1.2 + 2.1 * columns, 0.5 + 2.15 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in grid.flat[len(shown) :]:
        ax.set_visible(False)
    for ax, layer in zip(grid.flat, shown, strict=False):
        here = data.sel(layer=layer)
        ax.set_facecolor("0.8")
        mesh = ax.pcolormesh(
            here["expert"],
            here["expert_2"],
            here["lift"].where(here["expected"] >= 1).transpose("expert_2", "expert").clip(1e-3),
            cmap=DIVERGING,
            norm=LogNorm(1 / 8, 8),
            rasterized=True,
        )
        ax.set_aspect("equal")
        kind = str(here["kind"].values)
        ax.set_title(f"layer {layer} · {LABELS[kind]}", color=COLOURS[kind])
    grid[0, 0].invert_yaxis()
    for ax in grid[:, 0]:
        ax.set_ylabel("expert")
    for ax in grid[-1]:
        ax.set_xlabel("expert")
    bar = times_bar(figure, mesh, grid, location="right", shrink=0.8, aspect=30)
    bar.set_label("co-activation over chance (times)")
    return figure
