"""Style of all figures: one style file, two colours for the two kinds of mixer, six for everything else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from qwenlab.checkpoint.anatomy.display import COLOURS as COLOURS, LABELS as LABELS
from qwenlab.checkpoint.families import ATTENTION, DELTANET

PALETTE = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colours for labels: Okabe and Ito's, without the two that mean a kind of mixer."""

MARKERS = "osD^vP"
"""Marker of each colour of the palette."""

GREY = "#8A8A8A"
PALE = "#F0F0F0"
NO_KIND = "0.25"
"""Colour of parts that belong to both kinds of mixer."""

DIVERGING = "PRGn"
"""Colour map from below to above chance: colour-blind safe, and neither end is the colour of a kind."""

_DARK = {DELTANET: "#00304D", ATTENTION: "#5C3F00"}
_STYLE = Path(__file__).with_name("qwenlab.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Context manager and decorator: matplotlib uses qwenlab's style inside, and its previous settings afterwards."""
    with mpl.rc_context(_settings()):
        yield


@cache
def _settings() -> Any:
    return mpl.rc_params_from_file(_STYLE, use_default_template=False)


class NotebookFigure(Figure):
    """A figure that is not registered with pyplot, and that notebooks display."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> NotebookFigure:
    """Return an empty figure of this size in inches."""
    return NotebookFigure(figsize=(width, height), layout="constrained")


@cache
def shades(kind: str) -> LinearSegmentedColormap:
    """Return the colour map of a kind of mixer: from white over its colour to nearly black."""
    return LinearSegmentedColormap.from_list(f"qwenlab-{kind}", ["white", COLOURS[kind], _DARK[kind]])
