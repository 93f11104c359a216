"""What many plots share: checks of their input, layers along an axis, quantiles of heads, ticks and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar

from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.base.panels import figure_of, names_of
from qwenlab.plots.style import COLOURS, MARKERS, PALETTE


def need(statistics: xr.Dataset, name: str, *variables: str) -> xr.Dataset:
    """Return statistics of one label. Raises MissingVariable for absent variables and BadArgument for several labels.

    name       the function of qwenlab.stats that returns them
    variables  which are required; only the first one may have labels
    """
    source = f"Draw what qwenlab.stats.{name}(recording) returns."
    if not isinstance(statistics, xr.Dataset):
        raise MissingVariable(f"This is a {type(statistics).__name__}, not a Dataset of statistics.\n{source}")
    missing = [variable for variable in variables if variable not in statistics]
    if missing:
        has = ", ".join(map(str, statistics)) or "nothing"
        raise MissingVariable(f"No {', '.join(missing)} in this Dataset; it has {has}.\n{source}")
    if not any("label" in statistics[variable].dims for variable in variables[:1]):
        return statistics
    if statistics.sizes["label"] > 1:
        labels = names_of(statistics, "label")
        raise BadArgument(f"The statistics are by label: {', '.join(labels)}.\nSelect one: .sel(label={labels[0]!r}).")
    return statistics.isel(label=0)


def need_labels(statistics: xr.Dataset, name: str, *variables: str) -> list[str]:
    """Return the labels of statistics by label, and an empty list for others. Raises as `need`."""
    by_label = isinstance(statistics, xr.Dataset) and "label" in statistics.dims
    need(statistics.isel(label=0) if by_label else statistics, name, *variables)
    return names_of(statistics, "label") if by_label else []


def need_colours(dim: str, names: Sequence[Any]) -> None:
    """Raise BadArgument for more names than the palette has colours."""
    if len(names) > len(PALETTE):
        raise BadArgument(
            f"{len(names)} {dim}s, but only {len(PALETTE)} colours.\nSelect some: .sel({dim}={list(names[:2])})."
        )


def chosen_layers(data: xr.Dataset, layers: Sequence[int] | None) -> list[int]:
    """Return the chosen layers, by default all. Raises BadArgument for others than these statistics have."""
    available = data["layer"].values.tolist()
    unknown = [] if layers is None else sorted(set(layers) - set(available))
    if unknown or (layers is not None and not layers):
        raise BadArgument(f"layers={unknown}: these statistics have layers {available}.\nGive some of these.")
    return available if layers is None else list(layers)


def quantity(array: xr.DataArray) -> str:
    """Return name and units of a variable, as an axis label."""
    name, units = str(array.attrs["long_name"]), str(array.attrs["units"])
    units = {"1": "", "token": "tokens", "expert": "experts"}.get(units, units)
    return f"{name} ({units})" if units and units not in name else name


def kinds_of(statistics: xr.Dataset | xr.DataArray) -> list[str]:
    """Return the kind of mixer of each layer."""
    return names_of(statistics, "kind")


def ends(interval: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the lower and upper ends of intervals."""
    return interval.sel(bound="low"), interval.sel(bound="high")


def interval_points(ax: Axes, values: xr.DataArray, interval: xr.DataArray, y: Any, group: int, label: str) -> None:
    """Draw values and their intervals along x at heights y, with the colour and marker of a group."""
    ax.hlines(y, *ends(interval), colors=PALETTE[group], linewidth=1.2)
    ax.plot(values, y, color=PALETTE[group], marker=MARKERS[group], linestyle="", label=label)


def quantiles_by_head(ax: Axes, quantiles: xr.DataArray) -> None:
    """Draw each layer's heads side by side, lowest median first: outer quantiles, inner quantiles, the median.

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
            both = here.sel(quantile=low), here.sel(quantile=high)
            ax.vlines(x, *both, color=COLOURS[kind], alpha=strength, linewidth=width)
        middle = here.sel(quantile=at[len(at) // 2])
        ax.scatter(x, middle, s=min(9.0, 3 * width), color="black", linewidths=0, zorder=3)


def times_bar(mesh: QuadMesh, axes: Any, **where: Any) -> Colorbar:
    """Add a colour bar from 1/8 to 8 times the expected value."""
    bar = figure_of(np.ravel(axes)[0]).colorbar(mesh, ax=axes, extend="both", **where)
    bar.set_ticks([2.0**power for power in range(-3, 4)], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.minorticks_off()
    return bar


def end_labels(ax: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) right of the axes, at the ends of lines, without overlaps.

    Heights are in data units; the axes' limits must be final.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = np.array([float(to_axes.transform((1, height))[1]) for height, _, _ in labels])
    least = 0.16 / (figure_of(ax).get_size_inches()[1] * ax.get_position().height)
    for lower, upper in pairwise(np.argsort(placed, kind="stable")):
        placed[upper] = max(placed[upper], placed[lower] + least)
    placed -= max(0.0, placed.max(initial=0) - 1.0)
    for (_, text, colour), height in zip(labels, placed, strict=True):
        write_right(ax, text, height, "axes fraction", color=colour)


def write_right(ax: Axes, text: str, y: float, coords: Any = ("axes fraction", "data"), **style: Any) -> None:
    """Write text right of the axes at height y, by default in data units."""
    how: dict[str, Any] = {"va": "center", "fontsize": 8} | style
    ax.annotate(text, (1, y), (4, 0), xycoords=coords, textcoords="offset points", annotation_clip=False, **how)


def strip_axes(ax: Axes) -> None:
    """Hide the left and bottom spines and the left ticks, around cells and bars."""
    ax.tick_params(left=False)
    ax.spines[["left", "bottom"]].set_visible(False)
