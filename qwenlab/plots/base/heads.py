"""Heads side by side over their layers: what the figures that have a mark for every head draw alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qwenlab.plots.base.drawing import binary, kinds_of, say
from qwenlab.plots.style import COLOURS, GREY

Draw = Callable[[xr.Dataset, np.ndarray, str, float], None]
"""Draws the heads of one layer: their statistics, where they stand, their colour, and the width of a line."""


def side_by_side(data: xr.Dataset, order: xr.DataArray, draw: Draw) -> None:
    """Draw the heads of each layer around its place 0, 1, 2, ..., those of the lowest `order` [layer, head] first.

    Heads that a layer does not have are left out: those of which `order` is NaN.
    """
    width = float(np.clip(160 / data.sizes["head"] / data.sizes["layer"], 0.6, 4.0))
    for place, kind in enumerate(kinds_of(data)):
        by = order.isel(layer=place).dropna("head")
        here = data.isel(layer=place).sel(head=by["head"].values[np.argsort(by.values, kind="stable")])
        heads = max(1, here.sizes["head"])
        x = place + 0.8 * ((np.arange(here.sizes["head"]) + 0.5) / heads - 0.5)
        draw(here, x, COLOURS[kind], width)


def dot_size(width: float) -> float:
    """The size of a head's mark where lines have this width."""
    return float(np.clip(4 * width, 4, 14))


def dots(ax: Axes, here: xr.Dataset, name: str, x: np.ndarray, colour: str, width: float) -> None:
    """A mark a head and its interval; none where the layer has no such statistic."""
    if here[name].isnull().all():
        return
    if f"{name}_interval" in here:
        interval = here[f"{name}_interval"]
        ax.vlines(x, interval.sel(bound="low"), interval.sel(bound="high"), color=colour, linewidth=0.8, alpha=0.6)
    ax.scatter(x, here[name], s=dot_size(width), color=colour, linewidths=0, zorder=3)


def fit_log(ax: Axes, data: xr.Dataset, name: str, *more: float) -> None:
    """A log2 axis that has all marks, the upper ends of their intervals, and `more`.

    Not the lower ends: an interval of something positive may end at 0, which such an axis does not have.
    """
    marks = data[name].values[data[name].values > 0]
    most = [data[f"{name}_interval"].max().item()] if f"{name}_interval" in data else []
    found = np.array([*marks, *most, *more])
    found = found[np.isfinite(found) & (found > 0)]
    ax.set_yscale("log", base=2)
    if found.size:
        ax.set_ylim(found.min() / 1.4, found.max() * 1.25)
    say(ax.yaxis, binary)


def rings(ax: Axes, here: xr.Dataset, name: str, x: np.ndarray, colour: str, width: float) -> None:
    """A ring a head; none where the layer has no such statistic."""
    if not here[name].isnull().all():
        ax.scatter(x, here[name], s=2 * dot_size(width), facecolors="none", edgecolors=colour, linewidths=0.8)


def dashes(ax: Axes, here: xr.Dataset, name: str, x: np.ndarray, width: float) -> None:
    """A grey dash a head: what it is held against."""
    ax.scatter(x, here[name], s=2 * dot_size(width), color=GREY, marker="_", linewidths=1)


def dash(meaning: str) -> Line2D:
    """The entry of a legend for such dashes."""
    return Line2D([], [], color=GREY, marker="_", linestyle="", label=meaning)


def ring(colour: str, meaning: str) -> Line2D:
    """The entry of a legend for rings."""
    return Line2D([], [], color=colour, marker="o", linestyle="", markerfacecolor="none", label=meaning)
