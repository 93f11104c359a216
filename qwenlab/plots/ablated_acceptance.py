"""Effects of ablations on the acceptance length, by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.ablations_ranking import controls, verdicts
from qwenlab.plots.base.drawing import colours_of, ends, need, quantity
from qwenlab.plots.base.panels import ManyAxes, kind_marks, mark, panels
from qwenlab.plots.style import GREY, MARKERS, style


@style()
def ablated_acceptance(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Reduction of the acceptance length by each ablation: one column per layer, one panel per task.

    statistics  of stats.ablated_acceptance

    Bars are intervals; filled marks are significant, hollow ones are not; grey dashes are controls. Each sort of part
    (mixer, mlp, ...) has a marker. Parts of one layer are side by side; ablations of several layers are at the right,
    with their names. Raises BadArgument for more sorts of parts than there are markers.
    """
    names = ("effect", "effect_interval", "control_effect", "significant", "clean_acceptance_length")
    data = need(statistics, "ablated_acceptance", *names)
    sorts = list(dict.fromkeys(data["unit"].values.tolist()))
    if len(sorts) > len(MARKERS):
        raise BadArgument(
            f"{len(sorts)} sorts of parts, but only {len(MARKERS)} markers.\nSelect some: .isel(ablation=...)."
        )
    x, ticks, labels = _columns(data)
    tasks, level = data.sizes["task"], float(data.attrs["level"])
    width = float(np.clip(2.2 + 0.34 * len(ticks), 6.4, 12))
    shown = panels(axes, (tasks, 1), width, 1.1 + 1.75 * tasks, sharex=True, grid="y")
    for ax, task in zip(shown.axes, data["task"].values, strict=True):
        here = data.sel(task=task)
        _points(ax, here, x, sorts)
        low, high = here["clean_acceptance_length_interval"].values
        clean = f"{float(here['clean_acceptance_length']):.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
        ax.set_title(f"{task}, n = {int(here['texts'])} texts; without ablation {clean} tokens per round")
        ax.set_xticks(ticks, labels=labels)
    shown.axes[-1].set_xlabel("layer")
    shown.ylabel(quantity(data["effect"]))
    shapes = [mark(of, "0.25", marker) for of, marker in zip(sorts, MARKERS, strict=False)]
    shown.legend([*kind_marks(data), *(shapes if len(sorts) > 1 else ()), *verdicts(data, "_")])
    facts = [f"{name} {data.attrs[name]}" for name in ("rule", "depth") if name in data.attrs]
    facts += [f"{text.replace('_', '-')} text" for text in [data.attrs.get("text", "")] if text]
    shown.note([f"bars: {level:.0%} intervals", *facts])
    return shown.figure


def _columns(data: xr.Dataset) -> tuple[np.ndarray, list[float], list[str]]:
    """Return the x of each ablation, and the ticks: layers, and the names of ablations of several layers."""
    layer = data["layer"].values
    layers = np.unique(layer[layer >= 0])
    x = np.zeros(len(layer))
    for column, number in enumerate(layers):
        here = np.flatnonzero(layer == number)
        x[here] = column + 0.7 * ((np.arange(len(here)) + 0.5) / len(here) - 0.5)
    others = np.flatnonzero(layer < 0)
    x[others] = len(layers) + 0.5 * bool(len(layers)) + 1.6 * np.arange(len(others))
    step = 1 if len(layers) <= 24 else 4
    ticks = [float(column) for column in range(0, len(layers), step)] + x[others].tolist()
    names = [str(name).replace(" ", "\n", 1).replace("_", "\n") for name in data["ablation"].values[others]]
    return x, ticks, [str(number) for number in layers[::step]] + names


def _points(ax: Axes, here: xr.Dataset, x: np.ndarray, sorts: list[str]) -> None:
    """Draw effects with their intervals over the controls of each, along x."""
    colours = np.array(colours_of(here))
    ax.scatter(*controls(here, x), s=40, color=GREY, marker="_", linewidths=1.1, zorder=2)
    ax.vlines(x, *ends(here["effect_interval"]), colors=colours.tolist(), linewidth=1.3)
    faces = np.where(here["significant"].values, colours, "white")
    for of, marker in zip(sorts, MARKERS, strict=False):
        own = here["unit"].values == of
        how = dict(s=24, marker=marker, linewidths=1.2, zorder=3)
        ax.scatter(x[own], here["effect"].values[own], c=faces[own], edgecolors=colours[own], **how)  # type: ignore[arg-type]
    ax.axhline(0, color="0.4", linewidth=0.7)
    ax.margins(x=0.03)
