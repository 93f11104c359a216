"""Teacher-forced agreement of drafts, next to their acceptance online."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.rates import (
    MEASURED,
    ONLINE,
    draft_ticks,
    legend_right,
    rate_points,
    shifts,
    small_print,
)
from qwenlab.plots.style import new_figure, styled


@styled
def agreement(statistics: xr.Dataset, acceptance: xr.Dataset) -> Figure:
    """Teacher-forced agreement next to acceptance online, by place in the draft: the effect of selection.

    statistics  of stats.agreement: every emitted token begins a chain of drafts
    acceptance  of stats.acceptance: only those that end a round do, where drafts had just failed or run out
    """
    forced = need(statistics, "agreement", "teacher_forced_unconditional", "teacher_forced_conditional")
    online = need(acceptance, "acceptance", "unconditional", "conditional")
    figure = new_figure(8.4, 3.5)
    axes = figure.subplots(1, 2, sharey=True)
    first, second = shifts(2, 0.16)
    for ax, rate in zip(axes, ("unconditional", "conditional"), strict=True):
        rate_points(ax, forced, f"teacher_forced_{rate}", MEASURED, "s", first, "teacher-forced\nagreement")
        rate_points(ax, online, rate, ONLINE, "o", second, "acceptance\nonline")
        draft_ticks(ax, forced if forced.sizes["draft"] > online.sizes["draft"] else online)
        ax.set_title(rate.capitalize())
    axes[0].set_ylabel("share")
    legend_right(axes[1])
    return small_print(figure, online.attrs, forced.attrs)
