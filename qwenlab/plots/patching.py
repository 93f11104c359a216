"""Activation patching: the share of the source's answer that each patch restores, by layer and position."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.errors import NothingMeasured
from qwenlab.plots.base.drawing import CELLS_LEGEND, cells, colours_of, need, quantity, strip_axes, visible
from qwenlab.plots.base.panels import ManyAxes, kind_marks, layer_ticks, names_of, panels
from qwenlab.plots.style import DIVERGING, style

_NAMED = 48  # positions: up to here, tokens are written
_MANY = 40  # ticks


@style()
def patching(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Share of the source's answer that each patch restores: one row per layer, one column per position.

    statistics  of stats.patching
    axes        one for each part that was patched, above each other

    Green: the patch restores the answer, purple: it makes it less likely. Filled cells are significant; underlined ones
    do not surely differ from the target. Below each position is the token that all pairs have there, or "…"; positions
    where source and target differ are bold. Raises NothingMeasured if source and target do not differ in the answer.
    """
    data = need(statistics, "patching", "restored", "significant", "total", "total_interval")
    if bool(data["restored"].isnull().all()):
        low, high = data["total_interval"].values
        raise NothingMeasured(
            f"There is nothing to restore: after the source, its answer is {float(data['total']):+.3g} nat likelier "
            f"than after the target, [{low:+.3g}, {high:+.3g}].\nPatch texts whose answers the model distinguishes."
        )
    parts = list(dict.fromkeys(data["part"].values.tolist()))
    by_part = [data.isel(site=np.flatnonzero(data["part"].values == part)) for part in parts]
    rows, columns = [one.sizes["site"] for one in by_part], data.sizes["position"]
    row = float(np.clip(5 / max(rows), 0.09, 0.24))
    width = float(np.clip(2.6 + 0.24 * columns, 5.6, 12))
    height = 1.5 + sum(rows) * row + 0.35 * len(rows)
    shown = panels(axes, (len(parts), 1), width, height, sharex=True, height_ratios=rows)
    limit = max(1.0, float(np.abs(data["restored"]).max()))
    for ax, one in zip(shown.axes, by_part, strict=True):
        _draw_part(ax, one, limit)
    for ax in shown.axes[-1:] if shown.new else shown.axes:
        _positions(ax, data)
    shown.legend([*kind_marks(data), *CELLS_LEGEND])
    colours = ScalarMappable(Normalize(-limit, limit), DIVERGING)
    bar = shown.figure.colorbar(colours, ax=shown.axes, aspect=20, pad=0.02)
    bar.set_label(quantity(data["restored"]))
    bar.outline.set_linewidth(0)
    low, high = data["total_interval"].values
    interval = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    total = f"1 = full effect of the source: {float(data['total']):+.2f}{interval} nat"
    heads = [f"heads {data.attrs['heads']}"] if data.attrs.get("heads") else []
    shown.note([f"n = {data.attrs['pairs']} pairs", total, *heads])
    return shown.figure


def _draw_part(ax: Axes, panel: xr.Dataset, limit: float) -> None:
    """Draw the cells of one part, and the kinds of the layers at the left."""
    values, significant = panel["restored"].values, panel["significant"].values
    y, x = (index.ravel() for index in np.indices(values.shape))
    cells(ax, x, y, mpl.colormaps[DIVERGING](0.5 + values.ravel() / (2 * limit)), significant.ravel())
    strip = 0.012 * values.shape[1] + 0.25
    for row, colour in enumerate(colours_of(panel)):
        ax.add_patch(Rectangle((-0.65 - strip, row - 0.44), strip, 0.88, color=colour, linewidth=0))
    ax.set(xlim=(-0.75 - strip, values.shape[1] - 0.5), ylim=(len(values) - 0.5, -0.5))
    layer_ticks(ax.yaxis, panel)
    strip_axes(ax)
    ax.set_title(str(panel["part"].values[0]))


def _positions(ax: Axes, data: xr.Dataset) -> None:
    """Label positions, with their tokens where these are few."""
    positions, count = data["position"].values, data.sizes["position"]
    if count > _NAMED:
        step = -(-count // _MANY)
        ax.set_xticks(range(0, count, step), labels=[str(number) for number in positions[::step]], rotation=90)
        ax.set_xlabel("position (tokens)")
        return
    tokens = [
        f"{visible(one)}→{visible(two)}" if one and two and one != two else visible(one) or "…"
        for one, two in zip(names_of(data, "source_token"), names_of(data, "target_token"), strict=True)
    ]
    between, rotation = ("\n", 0) if max(map(len, tokens)) <= 3 else ("  ", 90)
    labels = [f"{token}{between}{position}" for token, position in zip(tokens, positions, strict=True)]
    ax.set_xticks(range(count), labels=labels, rotation=rotation, fontsize=7)
    for label, differs in zip(ax.get_xticklabels(), data["differs"].values, strict=True):
        label.set_fontweight("bold" if differs else "normal")
    ax.set_xlabel("token and position (tokens)")
