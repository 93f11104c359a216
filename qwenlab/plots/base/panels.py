"""The axes that a plot draws in, a new figure's or the caller's; their layers, legends and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import KINDS
from qwenlab.errors import BadArgument
from qwenlab.plots.style import COLOURS, GREY, LABELS, new_figure

ManyAxes = Sequence[Axes] | np.ndarray | None
"""The `axes` argument of a plot with several panels."""

DASHED = (0, (3, 2))
_LETTERS = 15  # of a note, per inch
_MANY = 20  # ticks


@dataclass(frozen=True)
class Panels:
    """Axes of one plot, in reading order.

    In a new figure, legends, notes and common labels belong to the figure, and inner axes have no labels. In the
    caller's axes, everything stays within these.
    """

    axes: list[Axes]
    columns: int
    new: bool

    @property
    def figure(self) -> Figure:
        return figure_of(self.axes[0])

    def legend(self, handles: Sequence[Artist]) -> None:
        """Add a legend in one line at the top right."""
        if self.new:
            style: dict[str, Any] = {"ncols": len(handles), "columnspacing": 1.2, "handletextpad": 0.4}
            self.figure.legend(handles=handles, loc="outside upper right", **style)
        else:
            legend_above(self.axes[self.columns - 1], handles)

    def note(self, *lines: Sequence[str]) -> None:
        """Write facts below the x label; each sequence of facts begins a line and is wrapped."""
        ax = self.axes[-self.columns]
        width = self.figure.get_figwidth() * (1 if self.new else ax.get_position().width)
        wrapped: list[str] = []
        for facts in lines:
            wrapped.append("")
            for fact in facts:
                longer = f"{wrapped[-1]} · {fact}" if wrapped[-1] else fact
                wrapped[-1:] = [longer] if len(longer) <= int(width * _LETTERS) else [wrapped[-1], fact]
        words = "\n".join(wrapped)
        if self.new:
            self.figure.supxlabel(words, x=0.01, ha="left", fontsize=7.5, color="0.35")
        else:
            ax.set_xlabel("\n".join(filter(None, (ax.get_xlabel(), words))))

    def xlabel(self, words: str) -> None:
        """Label the x axes, once in a new figure."""
        if self.new:
            self.figure.supxlabel(words, fontsize=9)
        for ax in () if self.new else self.axes:
            ax.set_xlabel(words)

    def ylabel(self, words: str) -> None:
        """Label the y axes, once in a new figure."""
        if self.new:
            self.figure.supylabel(words, fontsize=9)
        for ax in () if self.new else self.axes:
            ax.set_ylabel(words)

    def label_outer(self, x: str, y: str | None = None) -> None:
        """Label the x axes, and the y axes unless None: those at the bottom and left of a new figure, or all."""
        for place, ax in enumerate(self.axes):
            ax.set_xlabel(x if not self.new or place >= len(self.axes) - self.columns else "")
            if y is not None:
                ax.set_ylabel(y if not self.new or place % self.columns == 0 else "")

    def layers(self, data: xr.Dataset, label: str = "layer") -> None:
        """Name the layers along the x axes of panels above each other, and align the y labels."""
        for ax in self.axes:
            layer_ticks(ax.xaxis, data)
        self.label_outer(label)
        self.figure.align_ylabels(self.axes)


def panels(
    axes: ManyAxes,
    shape: tuple[int, int],
    width: float,
    height: float,
    *,
    count: int | None = None,
    grid: Literal["x", "y"] | None = None,
    **layout: Any,
) -> Panels:
    """Return the caller's axes, or those of a new figure.

    axes           the caller's, in reading order
    shape          rows and columns of the panels
    width, height  of a new figure, in inches
    count          number of panels; by default as many as the shape has places
    grid           direction whose ticks have lines
    layout         further arguments of Figure.subplots for a new figure

    Raises BadArgument for another number of axes, for other objects, and for axes of several figures.
    """
    rows, columns = shape
    count = rows * columns if count is None else count
    if axes is None:
        every = list(new_figure(width, height).subplots(rows, columns, squeeze=False, **layout).flat)
        for place in range(count, rows * columns):
            every[place].remove()
            every[place - columns].tick_params(labelbottom=True)
        given = every[:count]
    else:
        given = _checked(list(np.ravel(np.array(axes, dtype=object))), count, shape)
    for ax in given if grid else ():
        ax.grid(axis=grid)
    return Panels(given, columns, axes is None)


def _checked(given: list[Any], count: int, shape: tuple[int, int]) -> list[Axes]:
    if len(given) != count or not all(isinstance(ax, Axes) for ax in given):
        kinds = ", ".join(sorted({type(ax).__name__ for ax in given})) or "nothing"
        raise BadArgument(
            f"axes: this plot has {count} panels, but {len(given)} ({kinds}) are given.\n"
            f"Give {count} matplotlib axes, such as those of plt.subplots{shape}."
        )
    if len({id(figure_of(ax)) for ax in given}) > 1:
        raise BadArgument("axes: these belong to several figures.\nGive axes of one figure.")
    return given


def panel(ax: Axes | None, width: float, height: float, **layout: Any) -> tuple[Panels, Axes]:
    """Return the one panel of a plot and its axes, as `panels`. Raises BadArgument for other objects than axes."""
    if ax is not None and not isinstance(ax, Axes):
        raise BadArgument(f"ax={type(ax).__name__}: this plot has one panel.\nGive one matplotlib axes: ax=plt.gca().")
    shown = panels(None if ax is None else [ax], (1, 1), width, height, **layout)
    return shown, shown.axes[0]


def names_of(statistics: xr.Dataset | xr.DataArray, coordinate: str) -> list[str]:
    """Return the values of a coordinate as text."""
    return [str(name) for name in statistics[coordinate].values]


def layer_ticks(axis: Axis, statistics: xr.Dataset) -> None:
    """Name the layers on an axis where they are at 0, 1, 2, ...: all, or every fourth, eighth, ..."""
    layers = names_of(statistics, "layer")
    step = 1
    while len(layers) / step > _MANY:
        step = 4 if step == 1 else 2 * step
    axis.set_ticks(range(0, len(layers), step), labels=layers[::step])
    axis.set_label_text("layer")


def layer_width(statistics: xr.Dataset, least: float = 4.5, most: float = 11.0) -> float:
    """Return a figure's width in inches for layers side by side."""
    return float(np.clip(2.5 + 0.32 * statistics.sizes["layer"], least, most))


def mark(label: str, colour: str, marker: str = "o", **style: Any) -> Line2D:
    """Return the legend entry of a marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label, **style)


def dash(label: str) -> Line2D:
    """Return the legend entry of grey dashes, which mark a baseline."""
    return mark(label, GREY, "_")


def stroke(label: str, colour: Any, width: float = 0.8, style: Any = "-", alpha: float = 1.0) -> Line2D:
    """Return the legend entry of a line."""
    return Line2D([], [], color=colour, linewidth=width, linestyle=style, alpha=alpha, label=label)


def kind_marks(data: xr.Dataset, marker: str = "s") -> list[Line2D]:
    """Return the legend entries of those kinds of mixer that occur."""
    kinds = names_of(data, "kind")
    return [mark(LABELS[kind], COLOURS[kind], marker) for kind in KINDS if kind in kinds]


def name_kinds(ax: Axes, data: xr.Dataset, *more: Artist) -> None:
    """Add a legend above the axes: the colours of the kinds of mixer, and `more` entries."""
    legend_above(ax, [*kind_marks(data), *more])


def legend_above(ax: Axes, handles: Sequence[Artist]) -> None:
    """Add a legend in one line above the right end of the axes."""
    where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1.0), "borderaxespad": 0.3}
    ax.legend(handles=handles, ncols=len(handles), columnspacing=1.2, handletextpad=0.4, **where)


def legend_right(ax: Axes) -> None:
    """Add a legend of what is labelled, right of the axes."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def figure_of(ax: Axes) -> Figure:
    """Return the figure of axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes that were removed from their figure"
    return figure
