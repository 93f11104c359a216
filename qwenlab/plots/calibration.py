"""Calibration of the draft head's probabilities."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from qwenlab.plots.base.drawing import interval_lines, need, say
from qwenlab.plots.base.rates import (
    DASHED,
    ONLINE,
    share_axis,
    small_print,
)
from qwenlab.plots.style import GREY, new_figure, styled


@styled
def calibration(statistics: xr.Dataset) -> Figure:
    """How often drafts are accepted, against their probability under the draft head; below, their number.

    statistics  of stats.calibration. On the dashed line the head is calibrated.
    """
    data = need(statistics, "calibration", "conditional", "mean_probability", "calibration_error", "tested")
    figure = new_figure(4.2, 4.2)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], color=GREY, linestyle=DASHED, linewidth=0.8)
    interval_lines(above, data["mean_probability"].values, data["conditional_interval"], [ONLINE])
    above.plot(data["mean_probability"], data["conditional"], color=ONLINE, marker="o", clip_on=False)
    share_axis(above)
    above.set_ylabel("conditional rate")
    above.set_title(f"Calibration of the draft head (error {float(data['calibration_error']):.3f})")
    bins = int(data.attrs["bins"])
    below.bar(
        data["probability"], data["tested"], width=0.96 / bins, align="edge", color=ONLINE, alpha=0.5, linewidth=0
    )
    below.set_xlim(0, 1)
    below.xaxis.set_major_formatter(PercentFormatter(1))
    say(below.yaxis, lambda value: f"{value:,.0f}")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set_ylabel("tested")
    below.set_xlabel("probability of the draft by the draft head")
    return small_print(figure, data.attrs)
