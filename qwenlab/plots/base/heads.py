"""Heads side by side in their layers: marks, rings, baselines and quantiles; shades of layers by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from qwenlab.checkpoint.families import DELTANET
from qwenlab.plots.base.drawing import colours_of, ends
from qwenlab.plots.base.panels import figure_of
from qwenlab.plots.base.ticks import binary_scale, two_ticks
from qwenlab.plots.style import GREY, shades

Draw = Callable[[Any, np.ndarray, str, float], None]
"""Draws the heads of one layer: their statistics, their x positions, their colour, and a line width."""


def side_by_side(data: Any, order: xr.DataArray, draw: Draw, thinnest: float = 0.6) -> None:
    """Draw the heads of each layer at x = 0, 1, 2, ..., sorted by `order` [layer, head].

    Heads whose `order` is NaN do not exist in that layer and are not drawn.
    """
    width = float(np.clip(160 / data.sizes["head"] / data.sizes["layer"], thinnest, 4.0))
    for place, colour in enumerate(colours_of(data)):
        by = order.isel(layer=place).dropna("head")
        here = data.isel(layer=place).sel(head=by["head"].values[np.argsort(by.values, kind="stable")])
        x = place + 0.8 * ((np.arange(here.sizes["head"]) + 0.5) / max(1, here.sizes["head"]) - 0.5)
        draw(here, x, colour, width)


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


def quantiles_by_head(ax: Axes, quantiles: xr.DataArray) -> None:
    """Draw each layer's heads side by side, lowest median first: outer quantiles, inner quantiles, the median.

    quantiles  [layer, head, quantile]
    """
    at = np.sort(quantiles["quantile"].values)
    half = len(at) // 2

    def draw(here: xr.DataArray, x: np.ndarray, colour: str, width: float) -> None:
        for strength, low, high in zip((0.3, 0.9), at[:half], at[::-1], strict=False):
            both = here.sel(quantile=low), here.sel(quantile=high)
            ax.vlines(x, *both, color=colour, alpha=strength, linewidth=width)
        ax.scatter(x, here.sel(quantile=at[half]), s=min(9.0, 3 * width), color="black", linewidths=0, zorder=3)

    side_by_side(quantiles, quantiles.sel(quantile=at[half], drop=True), draw, thinnest=0.35)


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


def layer_shades(values: xr.Dataset | xr.DataArray) -> np.ndarray:
    """Return colours [layer, channel], light to dark."""
    return np.asarray(shades(DELTANET)(np.linspace(0.3, 1.0, values.sizes["layer"])))


def layer_bar(axes: Sequence[Axes], data: xr.Dataset) -> None:
    """Add a colour bar that names the layers."""
    layers = data["layer"].values
    colours = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(layer_shades(data)))
    bar = figure_of(axes[0]).colorbar(colours, ax=list(axes), pad=0.02, aspect=30)
    step = -(-len(layers) // 10)
    bar.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])
    bar.minorticks_off()
    bar.set_label("DeltaNet layer")
