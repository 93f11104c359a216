"""Teacher-forced agreement of drafts, next to their acceptance online."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need, shifts
from qwenlab.plots.base.panels import ManyAxes, legend_right, panels
from qwenlab.plots.base.rates import MEASURED, ONLINE, draft_ticks, rate_notes, rate_points
from qwenlab.plots.style import style


@style()
def agreement(statistics: xr.Dataset, acceptance: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Teacher-forced agreement and online acceptance by draft position; their difference is the effect of selection.

    statistics  of stats.agreement: every emitted token starts a chain of drafts
    acceptance  of stats.acceptance: only tokens that end a round do, where drafts have just failed or run out
    axes        two, side by side
    """
    forced = need(statistics, "agreement", "teacher_forced_unconditional", "teacher_forced_conditional")
    online = need(acceptance, "acceptance", "unconditional", "conditional")
    shown = panels(axes, (1, 2), 8.4, 3.5, sharey=True)
    first, second = shifts(2)
    for ax, rate in zip(shown.axes, ("unconditional", "conditional"), strict=True):
        name, x = f"teacher_forced_{rate}", forced["draft"].values
        rate_points(ax, x + first, forced, name, MEASURED, "s", "teacher-forced\nagreement")
        rate_points(ax, online["draft"].values + second, online, rate, ONLINE, "o", "acceptance\nonline")
        deeper = forced if forced.sizes["draft"] > online.sizes["draft"] else online
        draft_ticks(ax, deeper, f"{rate.capitalize()} rate")
    shown.axes[0].set_ylabel("share")
    legend_right(shown.axes[-1])
    return rate_notes(shown, online.attrs, forced.attrs)
