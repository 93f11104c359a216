"""Acceptance length and speed-up of drafting, by depth."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qwenlab.plots.base.drawing import interval_lines, need
from qwenlab.plots.base.rates import (
    DASHED,
    MEASURED,
    ONLINE,
    legend_right,
    small_print,
)
from qwenlab.plots.style import GREY, new_figure, styled


@styled
def speedup(statistics: xr.Dataset) -> Figure:
    """Acceptance length and speed-up by depth: predicted, as counted and measured, and where drafting breaks even.

    statistics  of stats.speedup. Lines, with their intervals, are predicted from the deepest ledger; filled marks were
                counted or measured; open ones are what the costs say of those rounds.
    """
    names = ("expected_length", "break_even_length", "acceptance_length", "speedup", "as_run_speedup", "best_speedup")
    data = need(statistics, "speedup", *names, "measured_speedup")
    figure = new_figure(8.4, 3.7)
    left, right = figure.subplots(1, 2)
    depth, best = data["depth"].values, int(data["best_depth"])
    for ax, name in ((left, "expected_length"), (right, "speedup")):
        low, high = (data[f"{name}_interval"].sel(bound=end) for end in ("low", "high"))
        ax.fill_between(depth, low, high, color=ONLINE, alpha=0.2, linewidth=0)
        ax.plot(depth, data[name], color=ONLINE, marker="o", markersize=3, label="predicted")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(depth[0] - 0.4, depth[-1] + 0.4)
        ax.margins(y=0.1)
        ax.set_xlabel("depth (drafts a round)")
        ax.grid(axis="y")
    for ax, even, text in ((left, data["break_even_length"], "breaks even"), (right, 0 * depth + 1, "plain decoding")):
        ax.plot(depth, even, color=GREY, linestyle=DASHED)
        ax.annotate(
            text, (depth[-1], even[-1]), (0, 4), textcoords="offset points", ha="right", color="0.35", fontsize=8
        )
    interval_lines(right, depth, data["measured_speedup_interval"], [MEASURED])
    mark: dict[str, Any] = {"edgecolor": MEASURED, "marker": "D", "s": 24, "zorder": 3}
    left.scatter(depth, data["acceptance_length"], color=MEASURED, **mark)
    right.scatter(depth, data["as_run_speedup"], facecolor="white", label="predicted of\nthe rounds run", **mark)
    right.scatter(depth, data["measured_speedup"], color=MEASURED, label="counted,\nmeasured", **mark)
    left.set_ylabel("acceptance length (tokens)")
    left.set_title("Tokens a round")
    right.set_ylabel("speed-up (times)")
    largest = f"{float(data['best_speedup']):.2f} at depth {best}" if best else "none"
    right.set_title(f"Speed-up (best: {largest})")
    legend_right(right)
    return small_print(figure, data.attrs, data.attrs | data["acceptance_length"].attrs)
