"""Ablations of one task ranked by their effect, with the ranks that the data allow."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need, quantity
from qwenlab.plots.style import COLOURS, GREY, kind_marks, legend_over, new_figure, styled

_OF_ALL = "0.25"  # of what has no kind


@styled
def ablation_ranking(statistics: xr.Dataset, task: str | None = None, *, most: int = 64) -> Figure:
    """Ablations of one task ranked by effect, with intervals, their controls in grey, and the ranks the data allow.

    statistics  of stats.ablations or stats.ablated_acceptance
    task        by default the only one
    most        how many are shown: the most harmful

    Filled marks are significant, hollow ones are not. Ranks at the right are simultaneous: ablations whose bars overlap
    are tied. Raises BadArgument for a task that is not there, or none of several.
    """
    names = ("effect", "effect_interval", "control_effect", "rank_low", "rank_high", "significant")
    data = need(statistics, "ablations", *names)
    if most < 1:
        raise BadArgument(f"ablation_ranking(most={most!r}): give how many to show, 1 or more.")
    here = _one_task(data, task)
    count = here.sizes["ablation"]
    here = here.isel(ablation=np.argsort(-here["effect"].values, kind="stable")[:most])
    shown = here.sizes["ablation"]
    figure = new_figure(7.6, 1.4 + max(0.145, 0.21 - 0.001 * shown) * shown)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2.4, 1])
    y = np.arange(shown)
    colours = [COLOURS.get(str(kind), _OF_ALL) for kind in here["kind"].values]
    _controls(left, here)
    left.hlines(y, *(here["effect_interval"].sel(bound=bound) for bound in ("low", "high")), colors=colours)
    faces = [
        colour if significant else "white"
        for colour, significant in zip(colours, here["significant"].values, strict=True)
    ]
    left.scatter(here["effect"], y, s=22, c=faces, edgecolors=colours, linewidths=1.2, zorder=3)
    left.axvline(0, color="0.4", linewidth=0.7)
    bars = right.hlines(y, here["rank_low"] - 0.4, here["rank_high"] + 0.4, colors=colours, linewidth=4)
    bars.set_capstyle("projecting")  # a single rank is seen too, however many there are
    left.set_yticks(y, labels=[str(name) for name in here["ablation"].values], fontsize=8 if shown < 30 else 6.5)
    left.set_ylim(shown - 0.5, -0.5)
    left.set_xlabel(quantity(here["effect"]))
    right.set_xlabel("ranks that the data allow")
    right.set_xlim(0.5 - 0.02 * count, count + 0.5 + 0.02 * count)
    right.set_xticks(np.unique(np.linspace(1, count, min(count, 5)).round()))
    right.tick_params(axis="y", left=False)
    for ax in (left, right):
        ax.grid(axis="x")
    some = "" if shown == count else f"; the first {shown} of {count}"
    left.set_title(f"{here['task'].values}{some}")
    legend_over(figure, [*kind_marks([str(kind) for kind in here["kind"].values]), *verdicts(data, stroke="|")])
    words = f"n = {int(here['texts'])} texts · bars: {data.attrs['level']:.0%} intervals"
    figure.supxlabel(words, x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def verdicts(data: xr.Dataset, *, stroke: str) -> list[Line2D]:
    """Entries of a legend: what filled and hollow marks mean, and grey strokes, as they are drawn, of controls."""
    marks = [
        Line2D([], [], color="0.25", marker="o", linestyle="", label="significant"),
        Line2D([], [], color="0.25", marker="o", markerfacecolor="white", linestyle="", label="not significant"),
    ]
    if data.sizes["control"]:
        marks.append(Line2D([], [], color=GREY, marker=stroke, linestyle="", label="controls"))
    return marks


def _one_task(data: xr.Dataset, task: str | None) -> xr.Dataset:
    tasks = [str(name) for name in data["task"].values]
    if task is None and len(tasks) > 1:
        raise BadArgument(f"The statistics are of several tasks: {', '.join(tasks)}.\nPick one: task={tasks[0]!r}.")
    if task is not None and task not in tasks:
        raise BadArgument(f"task={task!r}: these statistics have {', '.join(tasks)}.")
    return data.sel(task=tasks[0] if task is None else task)


def _controls(ax: Axes, here: xr.Dataset) -> None:
    """A grey stroke for each control, on the line of what it is a control of."""
    row = {str(name): place for place, name in enumerate(here["ablation"].values)}
    whose = [str(name) for name in here["control_of"].values]
    shown = [place for place, name in enumerate(whose) if name in row]
    values = here["control_effect"].values[shown]
    ax.scatter(values, [row[whose[place]] for place in shown], s=40, color=GREY, marker="|", linewidths=1.1, zorder=2)
