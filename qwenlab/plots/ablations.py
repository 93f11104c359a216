"""Effects of ablations: a map over layers and tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.plots.base.cells import cells, verdicts
from qwenlab.plots.base.drawing import layer_ticks, need
from qwenlab.plots.style import COLOURS, DIVERGING, kind_marks, legend_over, new_figure, styled

_FEW = 16  # columns: values are written into the cells
_NAMED = 8  # parts of a layer: their rows are named
_COLOURMAP = f"{DIVERGING}_r"
_OF_ALL = "0.25"  # of what has no kind
_TICKS = (-1, -0.5, -0.25, -0.05, 0, 0.05, 0.25, 0.5, 1)


@styled
def ablation_map(statistics: xr.Dataset) -> Figure:
    """Effect of each ablation: one column per layer, one row per task, one panel per kind of part.

    statistics  of stats.ablations or stats.ablated_acceptance. Purple: worse without the part, green: better; the
                strongest colour is the largest change in the task, which stands at the right of its row with its units,
                and colours go with the root of the change, so that small ones are seen beside it. Filled cells are
                significant; underlined cells do not differ significantly from 0 and from their controls.
                Where a layer has several such parts (heads, experts, gates) a task has a row for each, in their order.
    """
    data = need(statistics, "ablations", "effect", "significant")
    panels = [_Panel.of(data, of) for of in dict.fromkeys(data["of"].values.tolist())]
    largest = np.abs(data["effect"].values).max(axis=1)
    columns, rows = max(panel.columns for panel in panels), [panel.rows for panel in panels]
    few = columns <= _FEW and max(panel.slots for panel in panels) <= _NAMED
    row = 0.27 if few or max(rows) <= 16 else max(0.035, 5.5 / max(rows))
    heights = [count * row + 0.3 for count in rows]
    width = (0.5 if few else 0.17) * columns
    figure = new_figure(float(np.clip(3.0 + width, 5.6, 12)), 1.0 + sum(heights) + 0.45 * len(rows))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel, largest, few, row)
    kinds = [str(kind) for kind in data["kind"].values]
    legend_over(figure, [*kind_marks(kinds), *verdicts()])
    bar = figure.colorbar(ScalarMappable(_roots(), _COLOURMAP), ax=list(axes), aspect=25, pad=0.02, shrink=0.9)
    bar.set_label(f"{data['effect'].attrs['long_name']}\n(share of the task's largest)")
    bar.set_ticks(list(_TICKS), labels=[f"{tick:g}" for tick in _TICKS])
    bar.minorticks_off()
    bar.outline.set_linewidth(0)
    return figure


def _roots() -> FuncNorm:
    """From -1 to 1 by the root, with its sign."""
    return FuncNorm((lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * y**2), -1, 1)


@dataclass(frozen=True)
class _Panel:
    """The ablations of one sort of part: the column of each, and its row within each task.

    names  of the rows of a task, where there are several and they have names
    """

    data: xr.Dataset
    title: str
    column: np.ndarray
    slot: np.ndarray
    names: tuple[str, ...] = ()

    @staticmethod
    def of(data: xr.Dataset, of: str) -> _Panel:
        """By layer, if each has one; else a column an ablation."""
        here = data.isel(ablation=np.flatnonzero(data["of"].values == of))
        layer = here["layer"].values
        if (layer < 0).any():
            return _Panel(here, of, np.arange(len(layer)), np.zeros(len(layer), int))
        _, column = np.unique(layer, return_inverse=True)
        words = [_word(str(name)) for name in here["ablation"].values]
        names = tuple(dict.fromkeys(words))
        if "" not in words and len(set(zip(words, layer.tolist(), strict=True))) == len(words):
            return _Panel(here, of, column, np.array([names.index(word) for word in words]), names)
        slot = np.array([(column[:place] == each).sum() for place, each in enumerate(column)])
        return _Panel(here, of, column, slot)

    @property
    def columns(self) -> int:
        return int(self.column.max()) + 1

    @property
    def slots(self) -> int:
        return int(self.slot.max()) + 1

    @property
    def gap(self) -> float:
        """Rows left free between tasks."""
        return 0.07 * self.slots + 0.25 if self.slots > 1 else 0

    @property
    def rows(self) -> float:
        tasks = self.data.sizes["task"]
        return tasks * self.slots + (tasks - 1) * self.gap

    def row(self, task: int, slot: Any) -> Any:
        """The place of a row of cells; of several, [slot]."""
        return task * (self.slots + self.gap) + slot


def _word(name: str) -> str:
    """What tells the parts of a layer apart in the names of `units`: "1" of "head 3.1", "decay" of "decay 3"."""
    parts = re.fullmatch(r"(\w+) \d+(?:\.(\d+))?", name)
    return "" if parts is None else parts[2] or parts[1]


def _draw(ax: Axes, panel: _Panel, largest: np.ndarray, few: bool, row: float) -> None:
    data, tasks, last = panel.data, panel.data.sizes["task"], panel.slots - 1
    high = 0.16 / row  # of the strip of kinds, in rows
    named = last > 0 and bool(panel.names) and panel.slots <= _NAMED
    for task in range(tasks):
        _of_task(ax, panel, task, float(largest[task]), few)
        middle = panel.row(task, last / 2)
        _beside(ax, f"{largest[task]:.3g}", (1, middle), (4, 0), fontsize=8)
        if named:
            _beside(ax, str(data["task"].values[task]), (0, middle), (-28, 0), fontsize=8, ha="right")
    for column in range(panel.columns):
        kind = str(data["kind"].values[int((panel.column == column).argmax())])
        place = column - 0.46, -0.65 - high
        ax.add_patch(Rectangle(place, 0.92, high, color=COLOURS.get(kind, _OF_ALL), linewidth=0))
    ax.set_xlim(-0.5, panel.columns - 0.5)
    ax.set_ylim(panel.row(tasks - 1, last) + 0.5, -0.7 - high)
    if named:
        at = [panel.row(task, slot) for task in range(tasks) for slot in range(panel.slots)]
        ax.set_yticks(at, labels=list(panel.names) * tasks, fontsize=7, color="0.4")
    else:
        at = [panel.row(task, last / 2) for task in range(tasks)]
        ax.set_yticks(at, labels=[str(name) for name in data["task"].values])
    ax.tick_params(left=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    units = str(data["effect"].attrs["units"])
    said = "largest" + ("" if units == "1" else f"\n({units})")
    _beside(ax, said, (1, -0.7 - high), (4, 0), fontsize=7, color="0.35", va="bottom")
    if (data["layer"].values < 0).any():
        names = [str(name) for name in data["ablation"].values]
        long = max(map(len, names)) * len(names) > 100
        ax.set_xticks(panel.column, labels=names, rotation=30 if long else 0, ha="right" if long else "center")
    else:
        first = [int((panel.column == column).argmax()) for column in range(panel.columns)]
        layer_ticks(ax.xaxis, data.isel(ablation=first))
    ax.set_title(panel.title)


def _beside(ax: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], **how: object) -> None:
    """Words left or right of the axes, at a height of the data."""
    where = dict(xycoords=("axes fraction", "data"), xytext=shift, textcoords="offset points", annotation_clip=False)
    ax.annotate(words, at, **({"va": "center"} | where | how))  # type: ignore[arg-type]


def _of_task(ax: Axes, panel: _Panel, task: int, largest: float, few: bool) -> None:
    """The cells of one task: filled where the effect is significant, underlined where not."""
    effect, significant = (panel.data[name].isel(task=task).values for name in ("effect", "significant"))
    share = effect / largest if largest > 0 else np.zeros(len(effect))
    x, y = panel.column, panel.row(task, panel.slot)
    cells(ax, x, y, mpl.colormaps[_COLOURMAP](_roots()(share)), significant)
    if few:
        for column, row, value, filled, strength in zip(x, y, effect, significant, np.abs(share), strict=True):
            colour = ("white" if strength > 0.36 else "0.1") if filled else "0.45"
            weight = "bold" if filled else "normal"
            shift = 0 if filled else -0.1
            ax.text(
                column, row + shift, _short(value), ha="center", va="center", fontsize=7, color=colour, weight=weight
            )


def _short(value: float) -> str:
    """A number in two digits or, where that takes much room, in one."""
    text = f"{value:.2g}"
    return re.sub(r"e([+-])0", r"e\1", text if len(text) < 7 and "e" not in text else f"{value:.0e}").replace("e+", "e")
