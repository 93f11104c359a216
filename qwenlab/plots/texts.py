"""Means over texts, with intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import interval_points, need, quantity, shifts
from qwenlab.plots.base.panels import names_of, panel
from qwenlab.plots.style import GREY, PALETTE, style


@style()
def mean_over_texts(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Means over texts with their intervals: the first dimension as rows, the second as colours.

    statistics  of stats.mean_over_texts, with one or two dimensions. For differences, a line marks 0

    Raises BadArgument for other dimensions, and if the second has more values than there are colours.
    """
    data = need(statistics, "mean_over_texts", "mean", "mean_interval", "texts")
    mean = data["mean"]
    if mean.ndim not in (1, 2) or (mean.ndim == 2 and mean.shape[1] > len(PALETTE)):
        sizes = ", ".join(f"{dim} {size}" for dim, size in mean.sizes.items()) or "none"
        raise BadArgument(
            f"mean_over_texts draws one or two dimensions, the second of at most {len(PALETTE)}; these have: {sizes}.\n"
            "Select a part with .sel(...), or .transpose(...)."
        )
    rows = names_of(mean, str(mean.dims[0]))
    groups = names_of(mean, str(mean.dims[1])) if mean.ndim == 2 else [""]
    shown, ax = panel(ax, 5.6, 1.2 + max(0.4, 0.2 * len(groups)) * len(rows), grid="x")
    for place, (name, shift) in enumerate(zip(groups, shifts(len(groups), 0.7, 0.2), strict=True)):
        here = data.isel({mean.dims[1]: place}) if mean.ndim == 2 else data
        interval_points(ax, here, "mean", np.arange(len(rows)) + shift, place, name)
    if mean.attrs["long_name"].startswith("difference"):
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), labels=rows)
    ax.set(xlabel=quantity(mean), ylim=(len(rows) - 0.5, -0.5))
    if mean.ndim == 2:
        shown.legend(ax.get_legend_handles_labels()[0])
    level = float(data["mean_interval"].attrs["level"])
    shown.note([f"n = {int(data['texts'])} texts per row", f"bars: {100 * level:.3g}% intervals"])
    return shown.figure
