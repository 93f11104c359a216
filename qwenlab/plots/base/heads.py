"""Heads side by side in their layers: marks, rings and baselines, one per head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from qwenlab.plots.base.drawing import ends, kinds_of
from qwenlab.plots.base.ticks import binary_scale, two_ticks
from qwenlab.plots.style import COLOURS, GREY

Draw = Callable[[xr.Dataset, np.ndarray, str, float], None]
"""Draws the heads of one layer: their statistics, their x positions, their colour, and a line width."""


def side_by_side(data: xr.Dataset, order: xr.DataArray, draw: Draw) -> None:
    """Draw the heads of each layer at x = 0, 1, 2, ..., sorted by `order` [layer, head].

    Heads whose `order` is NaN do not exist in that layer and are not drawn.
    """
    width = float(np.clip(160 / data.sizes["head"] / data.sizes["layer"], 0.6, 4.0))
    for place, kind in enumerate(kinds_of(data)):
        by = order.isel(layer=place).dropna("head")
        here = data.isel(layer=place).sel(head=by["head"].values[np.argsort(by.values, kind="stable")])
        x = place + 0.8 * ((np.arange(here.sizes["head"]) + 0.5) / max(1, here.sizes["head"]) - 0.5)
        draw(here, x, COLOURS[kind], width)


def draw_heads(
    ax: Axes, data: xr.Dataset, order: xr.DataArray, name: str, *, ring: str = "", baseline: str = ""
) -> None:
    """Draw one statistic per head, side by side: a mark with its interval, a ring, and a grey dash.

    name            variable of the marks
    ring, baseline  variables of the rings and dashes; a variable that is not in `data` is not drawn
    """

    def draw(here: xr.Dataset, x: np.ndarray, colour: str, width: float) -> None:
        size = float(np.clip(4 * width, 4, 14))
        if baseline in here:
            ax.scatter(x, here[baseline], s=2 * size, color=GREY, marker="_", linewidths=1)
        if ring in here and here[ring].notnull().any():
            ax.scatter(x, here[ring], s=2 * size, facecolors="none", edgecolors=colour, linewidths=0.8)
        if name not in here or here[name].isnull().all():
            return
        if f"{name}_interval" in here:
            ax.vlines(x, *ends(here[f"{name}_interval"]), color=colour, linewidth=0.8, alpha=0.6)
        ax.scatter(x, here[name], s=size, color=colour, linewidths=0, zorder=3)

    side_by_side(data, order, draw)


def fit_log(ax: Axes, data: xr.Dataset, name: str, *more: float) -> None:
    """Scale the y axis by log2, with limits that include all values, the upper ends of their intervals, and `more`.

    The lower end of an interval of a positive quantity may be 0, which a log axis cannot show.
    """
    upper = [data[f"{name}_interval"].max().item()] if f"{name}_interval" in data else []
    values = np.array([*data[name].values.ravel(), *upper, *more])
    values = values[np.isfinite(values) & (values > 0)]
    binary_scale(ax.yaxis)
    if values.size:
        ax.set_ylim(values.min() / 1.4, values.max() * 1.25)
        two_ticks(ax)
