"""What figures of rates by place in the draft share: marks, axes, and the small print on which rates depend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qwenlab.plots.base.drawing import interval_lines
from qwenlab.plots.style import PALETTE

ONLINE, MEASURED = PALETTE[0], PALETTE[3]
DASHED = (0, (3, 2))
MARKS = "osD^vP"
_LETTERS = 15  # of the small print that fit on an inch
_WIDTH = 0.5  # of a place on the axis, that the groups share


def shifts(many: int, step: float | None = None) -> np.ndarray:
    """Offsets of groups around their place, so that their intervals do not overlap."""
    step = _WIDTH / max(1, many) if step is None else step
    return (np.arange(many) - (many - 1) / 2) * min(step, 0.16)


def rate_points(ax: Axes, data: xr.Dataset, rate: str, colour: str, mark: str, shift: float, label: str) -> None:
    """A rate by place in the draft with its interval."""
    x = data["draft"].values + shift
    interval_lines(ax, x, data[f"{rate}_interval"], [colour])
    ax.plot(x, data[rate], color=colour, marker=mark, linewidth=0.8, label=label, clip_on=False)


def draft_ticks(ax: Axes, data: xr.Dataset) -> None:
    """The axes of a rate by place in the draft."""
    drafts = data["draft"].values
    ax.set_xticks(drafts)
    ax.set_xlim(drafts[0] - 0.5, drafts[-1] + 0.5)
    ax.set_xlabel("place in the draft")
    share_axis(ax)


def share_axis(ax: Axes) -> None:
    """A y axis of shares, in percent."""
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="y")


def legend_right(ax: Axes) -> None:
    """A legend right of the axes."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def small_print(figure: Figure, *facts: Mapping[Any, Any]) -> Figure:
    """Write the facts that rates depend on below the figure; each set of facts begins a line."""
    fits = int(figure.get_figwidth() * _LETTERS)
    lines: list[str] = []
    for each in dict.fromkeys(tuple(_facts(attrs)) for attrs in facts):
        lines.append("")
        for fact in each:
            longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
            lines[-1:] = [longer] if len(longer) <= fits else [lines[-1], fact]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def _facts(attrs: Mapping[Any, Any]) -> Iterator[str]:
    """The rule, depth, policy, text, numbers and level of a rate."""
    yield f"rule {attrs['rule']}"
    yield f"depth {attrs['depth']}"
    if "policy" in attrs:
        yield f"policy {attrs['policy']}"
    yield f"{str(attrs['text']).replace('_', '-')} text"
    yield str(attrs["origin"])
    if "rounds" in attrs:
        yield f"n = {_counted(attrs['rounds'])} rounds of {_counted(attrs['prompts'])} prompts"
    else:
        yield f"n = {_counted(attrs['chains'])} chains of {_counted(attrs['texts'])} texts"
    yield f"bars: {float(attrs['level']):.0%} intervals"


def _counted(number: Any) -> str:
    """A count with thousands separators; several counts as they are."""
    return str(number) if isinstance(number, str) else f"{int(number):,}"
