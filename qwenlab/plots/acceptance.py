"""Acceptance rates by place in the draft, and by other groups."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary, interval_lines, need, quantity
from qwenlab.plots.base.rates import (
    MARKS,
    ONLINE,
    draft_ticks,
    legend_right,
    rate_points,
    share_axis,
    shifts,
    small_print,
)
from qwenlab.plots.style import PALETTE, new_figure, styled


@styled
def acceptance(statistics: xr.Dataset) -> Figure:
    """Rates of acceptance by place in the draft, with intervals: unconditional and conditional.

    statistics  of stats.acceptance: as it is; by label, or by depth (stats.by_depth), a colour each; by position in the
                text or by target entropy, the conditional rate of each place in the draft against it. Raises
                BadArgument where groups are more than there are colours.
    """
    data = need(statistics, "acceptance", "draft", "conditional", "conditional_interval")
    for along in ("position", "entropy"):
        if along in data["conditional"].dims:
            return _along(data, along)
    group = next((dim for dim in ("label", "depth") if dim in data["conditional"].dims), None)
    if group is None:
        return _both_rates(data)
    names = data[group].values.tolist()
    if len(names) > len(PALETTE):
        raise BadArgument(
            f"{len(names)} groups along {group}, {len(PALETTE)} colours.\nPick some: .sel({group}={names[:2]})."
        )
    figure = new_figure(7.5, 3.3)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, rate in zip(axes, ("unconditional", "conditional"), strict=True):
        for place, (name, shift) in enumerate(zip(names, shifts(len(names)), strict=True)):
            text = f"depth {name}" if group == "depth" else str(name)
            rate_points(ax, data.sel({group: name}), rate, PALETTE[place], MARKS[place], shift, text)
        draft_ticks(ax, data)
        ax.set_title(f"{rate.capitalize()} rate")
    axes[0].set_ylabel("share accepted")
    legend_right(axes[1])
    return small_print(figure, data.attrs)


def _both_rates(data: xr.Dataset) -> Figure:
    figure = new_figure(6.0, 3.3)
    ax = figure.subplots()
    rates = ("unconditional", "conditional")
    for rate, colour, mark, shift in zip(rates, (ONLINE, PALETTE[1]), "os", shifts(2, 0.16), strict=True):
        rate_points(ax, data, rate, colour, mark, shift, f"{rate} rate")
    draft_ticks(ax, data)
    ax.set_ylabel("share accepted")
    ax.set_title("Acceptance by place in the draft")
    legend_right(ax)
    return small_print(figure, data.attrs)


def _along(data: xr.Dataset, along: str) -> Figure:
    """The conditional rate of each place in the draft against a binned quantity."""
    figure = new_figure(6.0, 3.3)
    ax = figure.subplots()
    drafts = data["draft"].values[: len(PALETTE)]
    for place, (draft, shift) in enumerate(zip(drafts, shifts(len(drafts)), strict=True)):
        x = np.arange(data.sizes[along]) + shift
        here = data.sel(draft=draft)
        colour = PALETTE[place]
        interval_lines(ax, x, here["conditional_interval"], [colour])
        ax.plot(
            x,
            here["conditional"],
            color=colour,
            marker=MARKS[place],
            linewidth=0.8,
            label=f"draft {draft}",
            clip_on=False,
        )
    edges = data[along].values
    ax.set_xticks(range(len(edges)), labels=[binary(edge) if along == "position" else f"{edge:g}" for edge in edges])
    share_axis(ax)
    ax.set_xlabel(quantity(data[along]))
    ax.set_ylabel("share accepted")
    ax.set_title("Conditional rate")
    legend_right(ax)
    return small_print(figure, data.attrs)
