"""Output gates of heads, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need
from qwenlab.plots.maps import name_tokens
from qwenlab.plots.style import new_figure, shades, styled

_PANELS = {
    "first_mass": "of the mass",
    "output_first": "of the output,\ngate off",
    "gated_output_first": "of the output,\ngate on",
}


@styled
def openness_by_token(maps: Sequence[xr.Dataset], *, tokens: Sequence[str] | None = None) -> Figure:
    """How far heads open their output gates at each token of one text: a row a head, the darker the further.

    maps    of stats.attention_map, with rows kept, of heads of one kind over the same text
    tokens  what the text's tokens are called; as many names are written as can be read
    """
    checked = [need(each, "attention_map", "mean_gate") for each in maps]
    if not checked or len({(str(each.attrs["kind"]), each.attrs["text"]) for each in checked}) > 1:
        raise BadArgument("openness_by_token draws heads of one kind over one text: give one map or several of such.")
    opened = np.stack([each["mean_gate"].values for each in checked])
    heads = len(opened)
    figure = new_figure(8.0, 1.3 + float(np.clip(0.16 * heads, 0.5, 6)))
    ax = figure.subplots()
    mesh = ax.pcolormesh(opened, cmap=shades(str(checked[0].attrs["kind"])), rasterized=opened.size > 2**14)
    ax.invert_yaxis()
    step = max(1, -(-heads // 36))
    named = [f"{each.attrs['layer']}.{each.attrs['head']}" for each in checked]
    ax.set_yticks(np.arange(0, heads, step) + 0.5, named[::step])
    ax.set_ylabel("layer.head")
    name_tokens(ax.xaxis, checked[0]["query"].values, tokens, 6.6)
    if tokens is None:
        ax.set_xlabel("position (tokens)")
    bar = figure.colorbar(mesh, ax=ax, pad=0.01, aspect=12)
    bar.set_label("mean gate value")
    ax.set_title("Mean value of the output gate")
    return figure
