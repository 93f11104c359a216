"""Legends: their entries, and their place above or right of the axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.families import KINDS
from qwenlab.plots.style import COLOURS, GREY, LABELS

DASHED = (0, (3, 2))


def mark(label: str, colour: str, marker: str = "o", **style: Any) -> Line2D:
    """Return the legend entry of a marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label, **style)


def ring(label: str, colour: str) -> Line2D:
    """Return the legend entry of a ring."""
    return mark(label, colour, markerfacecolor="none")


def dash(label: str) -> Line2D:
    """Return the legend entry of grey dashes, which mark a baseline."""
    return mark(label, GREY, "_")


def stroke(label: str, colour: Any, width: float = 0.8, style: Any = "-", alpha: float = 1.0) -> Line2D:
    """Return the legend entry of a line."""
    return Line2D([], [], color=colour, linewidth=width, linestyle=style, alpha=alpha, label=label)


def kind_marks(kinds: Sequence[str], marker: str = "s") -> list[Line2D]:
    """Return the legend entries of those kinds of mixer that occur."""
    return [mark(LABELS[kind], COLOURS[kind], marker) for kind in KINDS if kind in kinds]


def name_kinds(ax: Axes, kinds: Sequence[str], *more: Artist) -> None:
    """Add a legend above the axes: the colours of the kinds of mixer, and `more` entries."""
    legend_above(ax, [*kind_marks(kinds), *more])


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
