"""Acceptance rates by draft position and by group."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need, need_colours, quantity, shifts
from qwenlab.plots.base.panels import ManyAxes, Panels, legend_right, panels
from qwenlab.plots.base.rates import draft_ticks, rate_notes, rate_points, share_axis
from qwenlab.plots.base.ticks import binary
from qwenlab.plots.style import MARKERS, PALETTE, style

_RATES = ("unconditional", "conditional")


@style()
def acceptance(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Acceptance rates by draft position, with intervals: unconditional and conditional.

    statistics  of stats.acceptance: without groups; by label or by depth (stats.by_depth), one colour per group; by
                position in the text or by target entropy, which draws the conditional rate of each draft against it
    axes        two for statistics by label or by depth, otherwise one

    Raises BadArgument for more groups than there are colours.
    """
    data = need(statistics, "acceptance", "draft", "conditional", "conditional_interval")
    group = next((dim for dim in data["conditional"].dims if dim in ("position", "entropy", "label", "depth")), None)
    if group in ("label", "depth"):
        need_colours(str(group), data[group].values.tolist())
        shown = panels(axes, (1, 2), 7.5, 3.3, sharey=True)
        _by_group(shown, data, str(group))
    else:
        shown = panels(axes, (1, 1), 6.0, 3.3)
        _both_rates(shown.axes[0], data) if group is None else _along(shown.axes[0], data, str(group))
    shown.axes[0].set_ylabel("share accepted")
    legend_right(shown.axes[-1])
    return rate_notes(shown, data.attrs)


def _by_group(shown: Panels, data: xr.Dataset, group: str) -> None:
    """Draw each rate in a panel, one colour and marker per group."""
    names = data[group].values
    for ax, rate in zip(shown.axes, _RATES, strict=True):
        for name, shift, colour, marker in zip(names, shifts(len(names)), PALETTE, MARKERS, strict=False):
            text = f"depth {name}" if group == "depth" else str(name)
            rate_points(ax, data["draft"].values + shift, data.sel({group: name}), rate, colour, marker, text)
        draft_ticks(ax, data, f"{rate.capitalize()} rate")


def _both_rates(ax: Axes, data: xr.Dataset) -> None:
    for rate, colour, marker, shift in zip(_RATES, PALETTE, MARKERS, shifts(2), strict=False):
        rate_points(ax, data["draft"].values + shift, data, rate, colour, marker, f"{rate} rate")
    draft_ticks(ax, data, "Acceptance by draft position")


def _along(ax: Axes, data: xr.Dataset, along: str) -> None:
    """Draw the conditional rate of each draft position against a binned quantity."""
    drafts, edges = data["draft"].values[: len(PALETTE)], data[along].values
    for draft, shift, colour, marker in zip(drafts, shifts(len(drafts)), PALETTE, MARKERS, strict=False):
        x = np.arange(len(edges)) + shift
        rate_points(ax, x, data.sel(draft=draft), "conditional", colour, marker, f"draft {draft}")
    ax.set_xticks(range(len(edges)), labels=[binary(edge) if along == "position" else f"{edge:g}" for edge in edges])
    share_axis(ax)
    ax.set(title="Conditional rate", xlabel=quantity(data[along]))
