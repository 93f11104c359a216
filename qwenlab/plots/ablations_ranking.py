"""Ablations of one task, ranked by their effect, with the ranks that the data allow."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.arguments import choice, integer
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import colours_of, ends, need, quantity
from qwenlab.plots.base.panels import ManyAxes, kind_marks, mark, names_of, panels
from qwenlab.plots.style import GREY, style


@style()
def ablation_ranking(
    statistics: xr.Dataset, task: str | None = None, *, most: int = 64, axes: ManyAxes = None
) -> Figure:
    """Ablations of one task, ranked by their effect, with intervals, controls in grey, and the ranks the data allow.

    statistics  of stats.ablations or stats.ablated_acceptance
    task        which one; by default the only one
    most        number of ablations to show: those with the largest effects
    axes        two, side by side

    Filled marks are significant, hollow ones are not. Ranks at the right are simultaneous: ablations whose bars overlap
    are tied. Raises BadArgument for an unknown task, or without a task if there are several.
    """
    names = ("effect", "effect_interval", "control_effect", "rank_low", "rank_high", "significant")
    data = need(statistics, "ablations", *names)
    integer("ablation_ranking", "most", most, least=1, unit="ablations")
    here = _one_task(data, task)
    count = here.sizes["ablation"]
    here = here.isel(ablation=np.argsort(-here["effect"].values, kind="stable")[:most])
    shown = here.sizes["ablation"]
    height = 1.4 + max(0.145, 0.21 - 0.001 * shown) * shown
    both = panels(axes, (1, 2), 7.6, height, sharey=True, width_ratios=[2.4, 1], grid="x")
    (left, right), y = both.axes, np.arange(shown)
    colours = colours_of(here)
    rows, effects = controls(here, y)
    left.scatter(effects, rows, s=40, color=GREY, marker="|", linewidths=1.1, zorder=2)
    left.hlines(y, *ends(here["effect_interval"]), colors=colours)
    faces = np.where(here["significant"].values, colours, "white")
    left.scatter(here["effect"], y, s=22, c=faces, edgecolors=colours, linewidths=1.2, zorder=3)
    left.axvline(0, color="0.4", linewidth=0.7)
    bars = right.hlines(y, here["rank_low"] - 0.4, here["rank_high"] + 0.4, colors=colours, linewidth=4)
    bars.set_capstyle("projecting")  # so that a single rank is visible among many
    left.set_yticks(y, labels=names_of(here, "ablation"), fontsize=8 if shown < 30 else 6.5)
    left.set_xlabel(quantity(here["effect"]))
    if not both.new:
        right.set_yticks([])
    right.set(xlabel="ranks that the data allow", xlim=(0.5 - 0.02 * count, count + 0.5 + 0.02 * count))
    right.set_xticks(np.unique(np.linspace(1, count, min(count, 5)).round()))
    right.tick_params(axis="y", left=False)
    for ax in (left, right):
        ax.set_ylim(shown - 0.5, -0.5)
    some = "" if shown == count else f"; top {shown} of {count}"
    left.set_title(f"{here['task'].values}{some}")
    both.legend([*kind_marks(here), *verdicts(data, "|")])
    both.note([f"n = {int(here['texts'])} texts", f"bars: {data.attrs['level']:.0%} intervals"])
    return both.figure


def _one_task(data: xr.Dataset, task: str | None) -> xr.Dataset:
    tasks = names_of(data, "task")
    if task is None and len(tasks) > 1:
        raise BadArgument(f"The statistics are of several tasks: {', '.join(tasks)}.\nSelect one: task={tasks[0]!r}.")
    return data.sel(task=tasks[0] if task is None else choice("ablation_ranking", "task", task, tasks))


def controls(here: xr.Dataset, places: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Return the place of each control, that of the ablation that it controls, and its effect."""
    place_of = dict(zip(names_of(here, "ablation"), places.tolist(), strict=True))
    controlled = names_of(here, "control_of")
    shown = [name in place_of for name in controlled]
    return [place_of[name] for name in controlled if name in place_of], here["control_effect"].values[shown]


def verdicts(data: xr.Dataset, dash: str) -> list[Line2D]:
    """Return the legend entries of filled and hollow marks, and of controls, which have the marker `dash`."""
    marks = [mark("significant", "0.25"), mark("not significant", "0.25", markerfacecolor="white")]
    return marks + [mark("controls", GREY, dash)] * bool(data.sizes["control"])
