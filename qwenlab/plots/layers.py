"""All layers in one table."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import MissingVariable
from qwenlab.plots.base.drawing import kind_strip, need, quantity, strip_axes, write_beside
from qwenlab.plots.base.panels import layer_ticks, name_kinds, names_of, panel
from qwenlab.plots.style import PALE, shades, style

_FEW = 16  # layers: values are written into the cells


@style()
def layer_table(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Table of the layers: one column per layer in the colour of its kind, one row per statistic.

    statistics  of stats.layer_table. Shades span the range of each row, which is written at its right; grey means that
                the layer has no such value

    Raises MissingVariable without a statistic by layer.
    """
    data = need(statistics, "layer_table", *map(str, list(statistics)[:1]))
    rows = [str(name) for name in data if data[name].dims == ("layer",)]
    if not rows:
        raise MissingVariable(
            "No variable of this Dataset is by layer.\nDraw what qwenlab.stats.layer_table(recording) returns."
        )
    count = data.sizes["layer"]
    few = count <= _FEW
    shown, ax = panel(ax, min(11.5, 3.4 + (0.52 if few else 0.13) * count), 0.9 + 0.29 * len(rows))
    ax.set_facecolor(PALE)
    for row, name in enumerate(rows):
        _row(ax, row, data[name], few)
    kind_strip(ax, data, -0.9, 0.28)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(len(rows) - 0.5, -0.95))
    ax.set_yticks(range(len(rows)), labels=[quantity(data[name]) for name in rows])
    strip_axes(ax)
    layer_ticks(ax.xaxis, data)
    name_kinds(ax, data)
    return shown.figure


def _row(ax: Axes, row: int, values: xr.DataArray, few: bool) -> None:
    """Draw one statistic as shaded cells, with its range at the right."""
    numbers = values.values.astype(float)
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    norm = LogNorm(low, high) if values.attrs.get("scale") == "log2" and 0 < low < high else Normalize(low, high)
    for place, (kind, number) in enumerate(zip(names_of(values, "kind"), numbers, strict=True)):
        if np.isnan(number):
            continue
        strength = 0.08 + 0.72 * (float(norm(number)) if high > low else 0.5)
        ax.add_patch(Rectangle((place - 0.46, row - 0.44), 0.92, 0.88, color=shades(kind)(strength), linewidth=0))
        if few:
            colour = "white" if strength > (0.34 if kind == DELTANET else 0.6) else "0.1"
            ax.text(place, row, f"{number:.2g}", ha="center", va="center", fontsize=7.5, color=colour)
    write_beside(ax, f"{low:.3g} to {high:.3g}", row)
