"""What ablations cost in accepted drafts, layer by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.errors import BadArgument
from qwenlab.plots.ablations_ranking import verdicts
from qwenlab.plots.base.drawing import need, quantity
from qwenlab.plots.style import COLOURS, GREY, kind_marks, legend_over, new_figure, styled

_MARKS = "osD^vP"
_OF_ALL = "0.25"  # of what has no kind


@styled
def ablated_acceptance(statistics: xr.Dataset) -> Figure:
    """By how much each ablation shortens the acceptance length: a column a layer, a panel a label of texts.

    statistics  of stats.ablated_acceptance. Bars are intervals; filled marks are significant, hollow ones are not; grey
                strokes are controls. One mark per kind of part (mixer, mlp, ...); parts of one layer are side by side,
                and ablations of several layers at the right, under their names. Raises BadArgument for more kinds of
                parts than marks.
    """
    names = ("effect", "effect_interval", "control_effect", "significant", "clean_acceptance_length")
    data = need(statistics, "ablated_acceptance", *names)
    sorts = list(dict.fromkeys(data["of"].values.tolist()))
    if len(sorts) > len(_MARKS):
        raise BadArgument(f"{len(sorts)} sorts of parts, {len(_MARKS)} marks.\nPick some: .isel(ablation=...).")
    place, ticks, labels = _places(data)
    tasks, level = data.sizes["task"], float(data.attrs["level"])
    figure = new_figure(float(np.clip(2.2 + 0.34 * len(ticks), 6.4, 12)), 1.1 + 1.75 * tasks)
    axes = figure.subplots(tasks, 1, squeeze=False, sharex=True)[:, 0]
    for ax, task in zip(axes, data["task"].values, strict=True):
        here = data.sel(task=task)
        _points(ax, here, place, sorts)
        low, high = here["clean_acceptance_length_interval"].values
        clean = f"{float(here['clean_acceptance_length']):.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
        ax.set_title(f"{task}, n = {int(here['texts'])} texts; unedited {clean} tokens a round")
    axes[-1].set_xticks(ticks, labels=labels)
    axes[-1].set_xlabel("layer")
    figure.supylabel(quantity(data["effect"]), fontsize=9)
    shapes = [Line2D([], [], color="0.25", marker=_MARKS[row], linestyle="", label=of) for row, of in enumerate(sorts)]
    kinds = [str(kind) for kind in data["kind"].values]
    legend_over(figure, [*kind_marks(kinds), *(shapes if len(sorts) > 1 else ()), *verdicts(data, stroke="_")])
    facts = "".join(f" · {name} {data.attrs[name]}" for name in ("rule", "depth", "text") if name in data.attrs)
    figure.supxlabel(f"bars: {level:.0%} intervals{facts}", x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def _places(data: xr.Dataset) -> tuple[np.ndarray, list[float], list[str]]:
    """Where each ablation stands along x, and the ticks: layers, and the names of what has no one layer."""
    layer = data["layer"].values
    layers = np.unique(layer[layer >= 0])
    place = np.zeros(len(layer))
    for column, each in enumerate(layers):
        here = np.flatnonzero(layer == each)
        place[here] = column + 0.7 * ((np.arange(len(here)) + 0.5) / len(here) - 0.5)
    others = np.flatnonzero(layer < 0)
    place[others] = len(layers) + 0.5 * bool(len(layers)) + 1.6 * np.arange(len(others))
    step = 1 if len(layers) <= 24 else 4
    ticks = [float(column) for column in range(0, len(layers), step)] + place[others].tolist()
    names = [str(name).replace(" ", "\n", 1).replace("_", "\n") for name in data["ablation"].values[others]]
    return place, ticks, [str(each) for each in layers[::step]] + names


def _points(ax: Axes, here: xr.Dataset, place: np.ndarray, sorts: list[str]) -> None:
    """Effects with their intervals over the controls of each, along x."""
    colours = np.array([COLOURS.get(str(kind), _OF_ALL) for kind in here["kind"].values])
    at = dict(zip(here["ablation"].values.tolist(), place, strict=True))
    whose = [at[str(name)] for name in here["control_of"].values]
    ax.scatter(whose, here["control_effect"], s=40, color=GREY, marker="_", linewidths=1.1, zorder=2)
    low, high = (here["effect_interval"].sel(bound=bound).values for bound in ("low", "high"))
    ax.vlines(place, low, high, colors=colours.tolist(), linewidth=1.3)
    faces = np.where(here["significant"].values, colours, "white")
    for row, of in enumerate(sorts):
        own = here["of"].values == of
        how = dict(s=24, marker=_MARKS[row], linewidths=1.2, zorder=3)
        ax.scatter(place[own], here["effect"].values[own], c=faces[own], edgecolors=colours[own], **how)  # type: ignore[arg-type]
    ax.axhline(0, color="0.4", linewidth=0.7)
    ax.grid(axis="y")
    ax.margins(x=0.03)
