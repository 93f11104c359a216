"""What several figures draw alike: layers along an axis, quantiles of heads, intervals, labels at the ends of lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.style import COLOURS, figure_of

_MANY = 20  # ticks


def need(statistics: xr.Dataset, name: str, *variables: str) -> xr.Dataset:
    """Statistics with these variables and of one label; raises MissingVariable and BadArgument."""
    made = f"Draw what qwenlab.stats.{name}(recording) returns."
    if not isinstance(statistics, xr.Dataset):
        raise MissingVariable(f"This is a {type(statistics).__name__}, not a Dataset of statistics.\n{made}")
    missing = [variable for variable in variables if variable not in statistics]
    if missing:
        has = ", ".join(map(str, statistics)) or "nothing"
        raise MissingVariable(f"No {', '.join(missing)} in this Dataset; it has {has}.\n{made}")
    if not any("label" in statistics[variable].dims for variable in variables[:1]):
        return statistics
    if statistics.sizes["label"] > 1:
        labels = [str(label) for label in statistics["label"].values]
        raise BadArgument(f"The statistics are by label: {', '.join(labels)}.\nPick one: .sel(label={labels[0]!r}).")
    return statistics.isel(label=0)


def quantity(array: xr.DataArray) -> str:
    """Name and units of a variable, as an axis label."""
    name, units = str(array.attrs["long_name"]), str(array.attrs["units"])
    units = {"1": "", "token": "tokens", "expert": "experts"}.get(units, units)
    return f"{name} ({units})" if units and units not in name else name


def kinds_of(statistics: xr.Dataset | xr.DataArray) -> list[str]:
    """The kind of mixer of each layer."""
    return [str(kind) for kind in statistics["kind"].values]


def layer_ticks(axis: Axis, statistics: xr.Dataset) -> None:
    """Name the layers on an axis where they lie at 0, 1, 2, ... in their order: all, or every fourth, eighth, ..."""
    layers = statistics["layer"].values
    step = 1
    while len(layers) / step > _MANY:
        step = 4 if step == 1 else 2 * step
    axis.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])
    axis.set_label_text("layer")


def layer_width(statistics: xr.Dataset, least: float = 4.5, most: float = 11.0) -> float:
    """Width in inches for the layers side by side."""
    return float(np.clip(2.5 + 0.32 * statistics.sizes["layer"], least, most))


def quantiles_by_head(ax: Axes, quantiles: xr.DataArray) -> None:
    """For each layer its heads side by side, lowest median first: the range of quantiles, its inner part, the median.

    quantiles  [layer, head, quantile]
    """
    at = np.sort(quantiles["quantile"].values)
    pairs = [(at[i], at[-1 - i]) for i in range(len(at) // 2)]
    width = float(np.clip(160 / quantiles.sizes["head"] / quantiles.sizes["layer"], 0.35, 4.0))
    for place, kind in enumerate(kinds_of(quantiles)):
        here = quantiles.isel(layer=place).dropna("head", how="all")
        here = here.isel(head=np.argsort(here.sel(quantile=at[len(at) // 2]).values, kind="stable"))
        x = place + 0.8 * ((np.arange(here.sizes["head"]) + 0.5) / max(1, here.sizes["head"]) - 0.5)
        for strength, (low, high) in zip((0.3, 0.9), pairs[:2], strict=False):
            ends = here.sel(quantile=low), here.sel(quantile=high)
            ax.vlines(x, *ends, color=COLOURS[kind], alpha=strength, linewidth=width)
        middle = here.sel(quantile=at[len(at) // 2])
        ax.scatter(x, middle, s=min(9.0, 3 * width), color="black", linewidths=0, zorder=3)


def say(axis: Axis, words: Callable[[float], str]) -> None:
    """Label the ticks of an axis, those of a power or so, by `words` of their value, and have no others."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set_minor_locator(NullLocator())


def binary(value: float) -> str:
    """A number as a reader of powers of two writes it: 1/8, 1, 64, 4 k."""
    if value == 0:
        return "0"
    if abs(value) < 1:
        return f"1/{1 / value:.3g}"
    for size, unit in ((2**30, "G"), (2**20, "M"), (2**10, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def interval_lines(ax: Axes, x: np.ndarray, interval: xr.DataArray, colours: Sequence[str]) -> None:
    """A vertical line from low to high at each x."""
    ax.vlines(x, interval.sel(bound="low"), interval.sel(bound="high"), colors=list(colours), linewidth=1.2)


def times_bar(figure: Figure, mesh: QuadMesh, ax: Any, **where: Any) -> Colorbar:
    """A colour bar from an eighth to eight times of what is expected."""
    bar = figure.colorbar(mesh, ax=ax, extend="both", **where)
    bar.set_ticks([2.0**power for power in range(-3, 4)], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.minorticks_off()
    return bar


def end_labels(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) right of the axes, where lines end, moved apart where they would overlap.

    Heights are in data; the axes' limits must be final.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(to_axes.transform((1, height))[1]) for height, _, _ in ends]
    least = 0.16 / (figure_of(ax).get_size_inches()[1] * ax.get_position().height)
    placed = np.array(heights)
    order = np.argsort(placed, kind="stable")
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + least)
    placed -= max(0.0, placed.max(initial=0) - 1.0)
    for (_, text, colour), height in zip(ends, placed, strict=True):
        ax.annotate(
            text,
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )
