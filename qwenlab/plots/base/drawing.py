"""What many plots share: checks of their input, colours, labels, colour bars and cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import FuncNorm
from matplotlib.patches import Patch, Rectangle

from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.base.panels import figure_of, names_of, stroke
from qwenlab.plots.style import COLOURS, MARKERS, NO_KIND, PALE, PALETTE

FILLED, LINE = 0.88, 0.18  # heights of significant cells and of others, in cells
_WIDE = 0.92
CELLS_LEGEND = [Patch(facecolor="0.45", label="significant"), stroke("not significant", "0.45", 2)]


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


def colours_of(data: xr.Dataset | xr.DataArray) -> list[str]:
    """Return the colour of the kind of mixer of each layer or part."""
    return [COLOURS.get(kind, NO_KIND) for kind in names_of(data, "kind")]


def ends(interval: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the lower and upper ends of intervals."""
    return interval.sel(bound="low"), interval.sel(bound="high")


def interval_points(ax: Axes, data: xr.Dataset, name: str, y: np.ndarray, group: int, label: str) -> None:
    """Draw a variable and its interval along x at heights y, with the colour and marker of a group."""
    ax.hlines(y, *ends(data[f"{name}_interval"]), colors=PALETTE[group], linewidth=1.2)
    ax.plot(data[name], y, color=PALETTE[group], marker=MARKERS[group], linestyle="", label=label)


def shifts(groups: int, width: float = 0.5, most: float = 0.16) -> np.ndarray:
    """Return offsets of groups around their common tick, `width` together, so that their intervals do not overlap."""
    return (np.arange(groups) - (groups - 1) / 2) * min(most, width / max(1, groups))


def root_norm(low: float, high: float) -> FuncNorm:
    """Scale colours by the signed square root, so that small values can be seen."""
    return FuncNorm((lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * np.square(y)), low, high)


def times_bar(mesh: QuadMesh, axes: Any, label: str, **where: Any) -> None:
    """Add a colour bar from 1/8 to 8 times the expected value."""
    bar = figure_of(np.ravel(axes)[0]).colorbar(mesh, ax=axes, extend="both", **where)
    bar.set_ticks([2.0**power for power in range(-3, 4)], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.minorticks_off()
    bar.set_label(label)


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
        write_beside(ax, text, height, "axes fraction", color=colour)


def write_beside(
    ax: Axes, text: str, y: float, coords: Any = ("axes fraction", "data"), *, left: float = 0, **style: Any
) -> None:
    """Write text at height y, by default in data units: right of the axes, or `left` points left of them."""
    x, shift, side = (0, -left, "right") if left else (1, 4, "left")
    how: dict[str, Any] = {"va": "center", "ha": side, "fontsize": 8} | style
    ax.annotate(text, (x, y), (shift, 0), xycoords=coords, textcoords="offset points", annotation_clip=False, **how)


def visible(token: str) -> str:
    """Return a token on one line, with marks for white space, and "�" for what cannot be printed."""
    word = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return "".join(letter if letter.isprintable() else "�" for letter in word)


def strip_axes(ax: Axes) -> None:
    """Hide the left and bottom spines and the left ticks, around cells and bars."""
    ax.tick_params(left=False)
    ax.spines[["left", "bottom"]].set_visible(False)


def kind_strip(ax: Axes, data: xr.Dataset, y: float, height: float) -> None:
    """Draw a strip above cells at x = 0, 1, 2, ...: the kind of mixer of each column."""
    for place, colour in enumerate(colours_of(data)):
        ax.add_patch(Rectangle((place - _WIDE / 2, y), _WIDE, height, color=colour, linewidth=0))


def cells(ax: Axes, x: np.ndarray, y: np.ndarray, colours: np.ndarray, significant: np.ndarray) -> None:
    """Draw cells with centres x, y [cell] in colours [cell, channel], where y points down."""
    bottom = y + FILLED / 2
    _boxes(ax, x, bottom - FILLED, bottom, PALE)
    _boxes(ax, x, np.where(significant, bottom - FILLED, bottom - LINE), bottom, colours)


def _boxes(ax: Axes, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: str | np.ndarray) -> None:
    left, right = x - _WIDE / 2, x + _WIDE / 2
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(list(corners), facecolor=colour, linewidth=0))
