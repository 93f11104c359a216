"""Cells of a map: filled where the value is significant, underlined where it is not."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from qwenlab.plots.style import PALE

FILLED, LINE = 0.88, 0.18  # heights, in cells
_WIDE = 0.92


def cells(ax: Axes, x: np.ndarray, y: np.ndarray, colours: np.ndarray, significant: np.ndarray) -> None:
    """Cells around the centres x, y [cell], in their colours [cell, channel]; y points down."""
    bottom = y + FILLED / 2
    top = np.where(significant, bottom - FILLED, bottom - LINE)
    _boxes(ax, x, bottom - FILLED, bottom, PALE)
    _boxes(ax, x, top, bottom, colours)


def verdicts() -> list[Patch | Line2D]:
    """Entries of a legend: what filled and underlined cells mean."""
    return [
        Patch(facecolor="0.45", label="significant"),
        Line2D([], [], color="0.45", linewidth=2, label="not significant"),
    ]


def _boxes(ax: Axes, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: str | np.ndarray) -> None:
    left, right = x - _WIDE / 2, x + _WIDE / 2
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(list(corners), facecolor=colour, linewidth=0))
