"""Cells of a heat map: filled where an effect is significant, underlined where it is not."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from qwenlab.plots.base.panels import stroke
from qwenlab.plots.style import PALE

FILLED, LINE = 0.88, 0.18  # heights, in cells
_WIDE = 0.92
LEGEND = [Patch(facecolor="0.45", label="significant"), stroke("not significant", "0.45", 2)]


def cells(ax: Axes, x: np.ndarray, y: np.ndarray, colours: np.ndarray, significant: np.ndarray) -> None:
    """Draw cells with centres x, y [cell] in colours [cell, channel], where y points down."""
    bottom = y + FILLED / 2
    _boxes(ax, x, bottom - FILLED, bottom, PALE)
    _boxes(ax, x, np.where(significant, bottom - FILLED, bottom - LINE), bottom, colours)


def _boxes(ax: Axes, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: str | np.ndarray) -> None:
    left, right = x - _WIDE / 2, x + _WIDE / 2
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
    ax.add_collection(PolyCollection(list(corners), facecolor=colour, linewidth=0))
