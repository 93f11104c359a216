"""Output gates of heads, by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.panels import panel
from qwenlab.plots.maps import name_tokens
from qwenlab.plots.style import shades, styled


@styled
def openness_by_token(
    maps: Sequence[xr.Dataset], *, tokens: Sequence[str] | None = None, ax: Axes | None = None
) -> Figure:
    """Output gates of heads at each token of one text: one row per head; darker is more open.

    maps    of stats.attention_map, recorded by row, of heads of one kind over the same text
    tokens  names of the text's tokens; as many are written as are legible
    ax      axes to draw in; by default those of a new figure

    Raises BadArgument for heads of several kinds or texts, and without maps.
    """
    checked = [need(one, "attention_map", "openness") for one in maps]
    if not checked or len({(str(one.attrs["kind"]), one.attrs["text"]) for one in checked}) > 1:
        raise BadArgument("openness_by_token draws heads of one kind over one text.\nGive one or several such maps.")
    values = np.stack([one["openness"].values for one in checked])
    heads = len(values)
    shown = panel(ax, 8.0, 1.3 + float(np.clip(0.16 * heads, 0.5, 6)))
    ax, figure = shown.axes[0], shown.figure
    length = 6.6 if shown.new else ax.get_position().width * figure.get_figwidth()
    mesh = ax.pcolormesh(values, cmap=shades(str(checked[0].attrs["kind"])), rasterized=values.size > 2**14)
    ax.invert_yaxis()
    step = max(1, -(-heads // 36))
    names = [f"{one.attrs['layer']}.{one.attrs['head']}" for one in checked]
    ax.set_yticks(np.arange(0, heads, step) + 0.5, names[::step])
    ax.set_ylabel("layer.head")
    name_tokens(ax.xaxis, checked[0]["query"].values, tokens, length)
    if tokens is None:
        ax.set_xlabel("position (tokens)")
    figure.colorbar(mesh, ax=ax, pad=0.01, aspect=12, label="openness")
    ax.set_title("Openness of the output gate")
    return figure
