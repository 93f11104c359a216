"""Calibration of the draft head's probabilities."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from qwenlab.plots.base.drawing import ends, need
from qwenlab.plots.base.panels import DASHED, ManyAxes, panels
from qwenlab.plots.base.rates import ONLINE, rate_notes, share_axis
from qwenlab.plots.base.ticks import format_ticks
from qwenlab.plots.style import GREY, style


@style()
def calibration(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Acceptance rate of drafts by their probability under the draft head; below, the number of drafts.

    statistics  of stats.calibration. The dashed line is perfect calibration
    """
    data = need(statistics, "calibration", "conditional", "mean_probability", "calibration_error", "tested")
    shown = panels(axes, (2, 1), 4.2, 4.2, height_ratios=[3, 1], sharex=True)
    above, below = shown.axes
    above.plot([0, 1], [0, 1], color=GREY, linestyle=DASHED, linewidth=0.8)
    above.vlines(data["mean_probability"], *ends(data["conditional_interval"]), colors=ONLINE, linewidth=1.2)
    above.plot(data["mean_probability"], data["conditional"], color=ONLINE, marker="o", clip_on=False)
    share_axis(above)
    error = float(data["calibration_error"])
    above.set(title=f"Calibration of the draft head (error {error:.3f})", ylabel="conditional rate")
    width = 0.96 / int(data.attrs["bins"])
    below.bar(data["probability"], data["tested"], width=width, align="edge", color=ONLINE, alpha=0.5, linewidth=0)
    for ax in shown.axes:
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    format_ticks(below.yaxis, lambda value: f"{value:,.0f}")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set(xlabel="probability under the draft head", ylabel="drafts")
    return rate_notes(shown, data.attrs)
