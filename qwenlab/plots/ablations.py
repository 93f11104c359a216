"""Effects of ablations: a heat map over layers and tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import CELLS_LEGEND, cells, kind_strip, need, root_norm, strip_axes, write_beside
from qwenlab.plots.base.panels import ManyAxes, kind_marks, layer_ticks, names_of, panels
from qwenlab.plots.style import DIVERGING, style

_FEW = 16  # columns: values are written into the cells
_NAMED = 8  # parts of a layer: their rows are named
_EFFECTS = f"{DIVERGING}_r"
_TICKS = (-1, -0.5, -0.25, -0.05, 0, 0.05, 0.25, 0.5, 1)
_SPARSE = (-1, -0.25, 0, 0.25, 1)  # on a short colour bar


@style()
def ablation_map(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Effect of each ablation: one column per layer, one row per task, one panel for each sort of part.

    statistics  of stats.ablations or stats.ablated_acceptance

    Purple: worse without the part, green: better. Colours are relative to the largest change in the task, which is
    written at the right of its row with its units, and follow the square root of the change, so that small ones can be
    seen. Filled cells are significant; underlined ones do not surely differ from 0 and from their controls. Where a
    layer has several such parts (heads, experts, gates), each task has one row for each, in their order.
    """
    data = need(statistics, "ablations", "effect", "significant")
    sorts = [_Panel.of(data, of) for of in dict.fromkeys(data["unit"].values.tolist())]
    largest = np.abs(data["effect"].values).max(axis=1)
    columns, rows = max(panel.columns for panel in sorts), [panel.rows for panel in sorts]
    few = columns <= _FEW and max(panel.slots for panel in sorts) <= _NAMED
    row = 0.27 if few or max(rows) <= 16 else max(0.035, 5.5 / max(rows))
    heights = [count * row + 0.3 for count in rows]
    width = (0.5 if few else 0.17) * columns
    width, height = float(np.clip(3.0 + width, 5.6, 12)), max(2.9, 1.0 + sum(heights) + 0.45 * len(rows))
    shown = panels(axes, (len(sorts), 1), width, height, height_ratios=heights)
    for ax, panel in zip(shown.axes, sorts, strict=True):
        _draw(ax, panel, largest, few, row)
    shown.legend([*kind_marks(data), *CELLS_LEGEND])
    bar = shown.figure.colorbar(
        ScalarMappable(root_norm(-1, 1), _EFFECTS), ax=shown.axes, aspect=25, pad=0.02, shrink=0.9
    )
    bar.set_label(f"{data['effect'].attrs['long_name']}\n(share of the task's largest)")
    ticks = _TICKS if height > 3 else _SPARSE
    bar.set_ticks(list(ticks), labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    bar.outline.set_linewidth(0)
    return shown.figure


@dataclass(frozen=True)
class _Panel:
    """The ablations of one sort of part: the column of each, and its row within each task.

    names  of the rows of a task, if there are several with names
    """

    data: xr.Dataset
    column: np.ndarray
    slot: np.ndarray
    names: tuple[str, ...] = ()

    @staticmethod
    def of(data: xr.Dataset, of: str) -> _Panel:
        """Arrange by layer if each ablation has one, else in one column per ablation."""
        here = data.isel(ablation=np.flatnonzero(data["unit"].values == of))
        layer = here["layer"].values
        if (layer < 0).any():
            return _Panel(here, np.arange(len(layer)), np.zeros(len(layer), int))
        _, column = np.unique(layer, return_inverse=True)
        words = [_word(name) for name in names_of(here, "ablation")]
        names = tuple(dict.fromkeys(words))
        if "" not in words and len(set(zip(words, layer.tolist(), strict=True))) == len(words):
            return _Panel(here, column, np.array([names.index(word) for word in words]), names)
        slot = np.array([(column[:place] == number).sum() for place, number in enumerate(column)])
        return _Panel(here, column, slot)

    @property
    def columns(self) -> int:
        return int(self.column.max()) + 1

    @property
    def slots(self) -> int:
        return int(self.slot.max()) + 1

    @property
    def rows(self) -> float:
        return self.row(self.data.sizes["task"] - 1, self.slots)

    def row(self, task: int, slot: Any) -> Any:
        """Return the y of a row of cells, or of several rows [slot]; there is some space between tasks."""
        gap = 0.07 * self.slots + 0.25 if self.slots > 1 else 0
        return task * (self.slots + gap) + slot


def _word(name: str) -> str:
    """Return the name of a part within its layer, from a name of `units`: "1" of "head 3.1", "decay" of "decay 3"."""
    parts = re.fullmatch(r"(\w+) \d+(?:\.(\d+))?", name)
    return "" if parts is None else parts[2] or parts[1]


def _draw(ax: Axes, panel: _Panel, largest: np.ndarray, few: bool, row: float) -> None:
    data, tasks, last = panel.data, panel.data.sizes["task"], panel.slots - 1
    high = 0.16 / row  # of the strip of kinds, in rows
    named = last > 0 and bool(panel.names) and panel.slots <= _NAMED
    for task in range(tasks):
        _draw_task(ax, panel, task, float(largest[task]), few)
        middle = panel.row(task, last / 2)
        write_beside(ax, f"{largest[task]:.3g}", middle)
        if named:
            write_beside(ax, names_of(data, "task")[task], middle, left=28)
    first = [int((panel.column == column).argmax()) for column in range(panel.columns)]
    kind_strip(ax, data.isel(ablation=first), -0.65 - high, high)
    ax.set(xlim=(-0.5, panel.columns - 0.5), ylim=(panel.row(tasks - 1, last) + 0.5, -0.7 - high))
    if named:
        y = [panel.row(task, slot) for task in range(tasks) for slot in range(panel.slots)]
        ax.set_yticks(y, labels=list(panel.names) * tasks, fontsize=7, color="0.4")
    else:
        ax.set_yticks([panel.row(task, last / 2) for task in range(tasks)], labels=names_of(data, "task"))
    strip_axes(ax)
    units = str(data["effect"].attrs["units"])
    header = "largest" + ("" if units == "1" else f"\n({units})")
    write_beside(ax, header, -0.7 - high, fontsize=7, color="0.35", va="bottom")
    if (data["layer"].values < 0).any():
        names = names_of(data, "ablation")
        long = max(map(len, names)) * len(names) > 100
        ax.set_xticks(panel.column, labels=names, rotation=30 if long else 0, ha="right" if long else "center")
    else:
        layer_ticks(ax.xaxis, data.isel(ablation=first))
    ax.set_title(str(data["unit"].values[0]))


def _draw_task(ax: Axes, panel: _Panel, task: int, largest: float, few: bool) -> None:
    """Draw the cells of one task."""
    effect, significant = (panel.data[name].isel(task=task).values for name in ("effect", "significant"))
    share = effect / largest if largest > 0 else np.zeros(len(effect))
    x, y = panel.column, panel.row(task, panel.slot)
    cells(ax, x, y, mpl.colormaps[_EFFECTS](root_norm(-1, 1)(share)), significant)
    if few:
        for column, row, value, filled, strength in zip(x, y, effect, significant, np.abs(share), strict=True):
            colour = ("white" if strength > 0.36 else "0.1") if filled else "0.45"
            weight, y_text = ("bold", row) if filled else ("normal", row - 0.1)
            ax.text(column, y_text, _short(value), ha="center", va="center", fontsize=7, weight=weight, color=colour)


def _short(value: float) -> str:
    """Format a number with two digits or, where that is long, with one."""
    text = f"{value:.2g}"
    return re.sub(r"e([+-])0", r"e\1", text if len(text) <= 7 and "e" not in text else f"{value:.0e}").replace(
        "e+", "e"
    )
