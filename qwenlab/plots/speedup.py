"""Acceptance length and speed-up of drafting, by depth."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qwenlab.plots.base.drawing import ends, need
from qwenlab.plots.base.panels import DASHED, ManyAxes, legend_right, panels
from qwenlab.plots.base.rates import MEASURED, ONLINE, rate_notes
from qwenlab.plots.style import GREY, style


@style()
def speedup(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Acceptance length and speed-up by depth: predicted, measured, and the break-even line.

    statistics  of stats.speedup. Lines, with their intervals, are predicted from the deepest ledger; filled marks are
                counted (length) or measured (speed-up); open marks are predicted from the costs of the measured rounds
    axes        two, side by side
    """
    names = ("expected_length", "break_even_length", "acceptance_length", "speedup", "as_run_speedup", "best_speedup")
    data = need(statistics, "speedup", *names, "measured_speedup")
    shown = panels(axes, (1, 2), 8.4, 3.7, grid="y")
    left, right = shown.axes
    depth, best = data["depth"].values, int(data["best_depth"])
    for ax, name in ((left, "expected_length"), (right, "speedup")):
        ax.fill_between(depth, *ends(data[f"{name}_interval"]), color=ONLINE, alpha=0.2, linewidth=0)
        ax.plot(depth, data[name], color=ONLINE, marker="o", markersize=3, label="predicted")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.margins(y=0.1)
        ax.set(xlabel="depth (drafts per round)", xlim=(depth[0] - 0.4, depth[-1] + 0.4))
    for ax, even, text in ((left, data["break_even_length"], "break-even"), (right, 0 * depth + 1, "plain decoding")):
        ax.plot(depth, even, color=GREY, linestyle=DASHED)
        where: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "color": "0.35", "fontsize": 8}
        ax.annotate(text, (depth[-1], even[-1]), (-5, 4), **where)
    right.vlines(depth, *ends(data["measured_speedup_interval"]), colors=MEASURED, linewidth=1.2)
    mark: dict[str, Any] = {"edgecolor": MEASURED, "marker": "D", "s": 24, "zorder": 3}
    left.scatter(depth, data["acceptance_length"], color=MEASURED, **mark)
    right.scatter(depth, data["as_run_speedup"], facecolor="white", label="predicted for\nthese rounds", **mark)
    right.scatter(depth, data["measured_speedup"], color=MEASURED, label="measured", **mark)
    left.set(title="Tokens per round", ylabel="acceptance length (tokens)")
    largest = f"{float(data['best_speedup']):.2f} at depth {best}" if best else "none"
    right.set(title=f"Speed-up (best: {largest})", ylabel="speed-up (times)")
    legend_right(right)
    return rate_notes(shown, data.attrs, data.attrs | data["acceptance_length"].attrs)
