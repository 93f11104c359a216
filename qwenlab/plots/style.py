"""The look of every figure: one style file, two colours for the two kinds of mixer, six for everything else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.checkpoint.anatomy.display import COLOURS as COLOURS, LABELS as LABELS
from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS

P = ParamSpec("P")

PALETTE = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colours for domains and other labels: Okabe and Ito's, without the two that mean a kind of mixer."""

GREY = "#8A8A8A"
PALE = "#F0F0F0"

DIVERGING = "PRGn"
"""Less than chance to more than chance; told apart by all eyes, and neither end is the colour of a kind."""

_DARK = {DELTANET: "#00304D", ATTENTION: "#5C3F00"}
_STYLE = Path(__file__).with_name("qwenlab.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """The look of qwenlab's figures for your own, within a `with`; matplotlib's settings are as before when it ends."""
    with mpl.rc_context(_settings()):
        yield


@cache
def _settings() -> Any:
    return mpl.rc_params_from_file(_STYLE, use_default_template=False)


class NotebookFigure(Figure):
    """A figure that pyplot knows nothing of, and that a notebook shows all the same."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a plot in our style, and leave the caller's settings as they were."""

    @wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return function(*args, **kwargs)

    return draw


def new_figure(width: float, height: float) -> NotebookFigure:
    """An empty figure of this size in inches."""
    return NotebookFigure(figsize=(width, height), layout="constrained")


def axes_of(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The axes to draw in, the caller's or new ones, with their figure."""
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    return figure_of(ax), ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes stand in."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes that were removed from their figure"
    return figure


@cache
def shades(kind: str) -> LinearSegmentedColormap:
    """White over the colour of a kind of mixer to nearly black: little to much."""
    return LinearSegmentedColormap.from_list(f"qwenlab-{kind}", ["white", COLOURS[kind], _DARK[kind]])


def name_kinds(ax: Axes, kinds: Sequence[str], *more: Artist) -> None:
    """Say above the axes which colour is which kind of mixer; `more` are further entries of the legend."""
    legend_above(ax, [*kind_marks(kinds), *more])


def kind_marks(kinds: Sequence[str]) -> list[Line2D]:
    """Entries of a legend: the colours of the kinds of mixer that are there."""
    shown = [kind for kind in KINDS if kind in kinds]
    return [Line2D([], [], color=COLOURS[kind], marker="s", linestyle="", label=LABELS[kind]) for kind in shown]


def legend_over(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend in one line over the right end of the figure, which no axes make room for."""
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), columnspacing=1.2, handletextpad=0.4)


def legend_above(ax: Axes, handles: Sequence[Artist]) -> None:
    """A legend in one line over the right end of the axes."""
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1.0),
        ncols=len(handles),
        columnspacing=1.2,
        handletextpad=0.4,
        borderaxespad=0.3,
    )
