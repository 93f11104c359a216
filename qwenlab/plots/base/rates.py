"""Acceptance rates by draft position: marks, axes, and notes on what the rates depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qwenlab.plots.base.drawing import ends
from qwenlab.plots.base.panels import Panels
from qwenlab.plots.style import PALETTE

ONLINE, MEASURED = PALETTE[0], PALETTE[3]


def rate_points(ax: Axes, x: np.ndarray, data: xr.Dataset, rate: str, colour: str, marker: str, label: str) -> None:
    """Draw a rate at x with its interval."""
    ax.vlines(x, *ends(data[f"{rate}_interval"]), colors=colour, linewidth=1.2)
    ax.plot(x, data[rate], color=colour, marker=marker, linewidth=0.8, label=label, clip_on=False)


def draft_ticks(ax: Axes, data: xr.Dataset, title: str) -> None:
    """Format the axes of a rate by draft position."""
    drafts = data["draft"].values
    ax.set(title=title, xlabel="draft position", xticks=drafts, xlim=(drafts[0] - 0.5, drafts[-1] + 0.5))
    share_axis(ax)


def share_axis(ax: Axes) -> None:
    """Format a y axis of shares, in percent."""
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="y")


def rate_notes(shown: Panels, *attrs: Mapping[Any, Any]) -> Figure:
    """Write what rates depend on below the panels, one line per mapping of attributes; return the figure."""
    shown.note(*dict.fromkeys(tuple(_facts(each)) for each in attrs))
    return shown.figure


def _facts(attrs: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the rule, depth, policy, text, counts and level of a rate."""
    yield f"rule {attrs['rule']}"
    yield f"depth {attrs['depth']}"
    if "policy" in attrs:
        yield f"policy {attrs['policy']}"
    yield f"{str(attrs['text']).replace('_', '-')} text"
    yield str(attrs["origin"])
    units, clusters = ("rounds", "prompts") if "rounds" in attrs else ("chains", "texts")
    yield f"n = {_count(attrs[units])} {units} of {_count(attrs[clusters])} {clusters}"
    yield f"bars: {float(attrs['level']):.0%} intervals"


def _count(number: Any) -> str:
    """Format a count with thousands separators; a text of several counts stays."""
    return str(number) if isinstance(number, str) else f"{int(number):,}"
