"""Scores of texts, or what changes them, with intervals over the texts."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need, quantity
from qwenlab.plots.style import GREY, PALETTE, new_figure, styled

_MARKS = "osD^vP"


@styled
def mean_over_texts(statistics: xr.Dataset) -> Figure:
    """Means over texts with their intervals: a row for each place along the first dimension, a colour along the second.

    statistics  of stats.mean_over_texts, of one or two dimensions. Of differences, 0 is drawn. Raises BadArgument for
                other dimensions, and where the second has more places than there are colours.
    """
    data = need(statistics, "mean_over_texts", "mean", "mean_interval", "texts")
    mean = data["mean"]
    if mean.ndim not in (1, 2) or (mean.ndim == 2 and mean.shape[1] > len(PALETTE)):
        sizes = ", ".join(f"{dim} {size}" for dim, size in mean.sizes.items()) or "none"
        raise BadArgument(
            f"mean_over_texts draws one dimension or two, the second of at most {len(PALETTE)}; these have: {sizes}.\n"
            "Pick a part with .sel(...), or .transpose(...)."
        )
    rows = [str(row) for row in mean[mean.dims[0]].values]
    colours = [str(each) for each in mean[mean.dims[1]].values] if mean.ndim == 2 else [""]
    figure = new_figure(5.6, 1.2 + max(0.4, 0.2 * len(colours)) * len(rows))
    ax = figure.subplots()
    shifts = (np.arange(len(colours)) - (len(colours) - 1) / 2) * min(0.2, 0.7 / len(colours))
    for place, name in enumerate(colours):
        middle = mean[:, place] if mean.ndim == 2 else mean
        ends = data["mean_interval"][:, place] if mean.ndim == 2 else data["mean_interval"]
        y, colour = np.arange(len(rows)) + shifts[place], PALETTE[place]
        ax.hlines(y, ends.sel(bound="low"), ends.sel(bound="high"), colors=colour, linewidth=1.2)
        ax.plot(middle, y, color=colour, marker=_MARKS[place], linestyle="", label=name)
    if mean.attrs["long_name"].startswith("difference"):
        ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), labels=rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.set_xlabel(quantity(mean))
    if mean.ndim == 2:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=len(colours))
    level = float(data["mean_interval"].attrs["level"])
    said = f"n = {int(data['texts'])} texts{' a row' if mean.ndim else ''} · bars: {100 * level:.3g} % intervals"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure
