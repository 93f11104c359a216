"""Which layers and experts know what they read."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import kinds_of, layer_ticks, layer_width, need
from qwenlab.plots.style import COLOURS, DIVERGING, GREY, name_kinds, new_figure, styled

_SURE = 0.05


@styled
def specialisation(statistics: xr.Dataset, *, layer: int | None = None) -> Figure:
    """What experts tell of the label by layer, beside the shuffled control; and the experts of one layer.

    statistics  of stats.specialisation. Above: information (filled where p < 0.05) and, in grey, where shuffled labels
                lie. Below: log odds of each expert for each label, green more likely than for the other labels.
    layer       whose experts are drawn; by default the most informative one. Raises BadArgument for others.
    """
    data = need(statistics, "specialisation", "information", "shuffled", "shuffled_interval", "p_value", "log_odds")
    layers, kinds = data["layer"].values.tolist(), kinds_of(data)
    chosen = layers[int(data["information"].argmax("layer"))] if layer is None else layer
    if chosen not in layers:
        raise BadArgument(f"layer={layer}: these statistics have layers {layers}.")
    labels, experts = data.sizes["label"], data.sizes["expert"]
    width = max(layer_width(data, least=7.0), min(11.0, 3 + 0.04 * experts))
    figure = new_figure(width, 3.6 + 0.24 * labels)
    above, below = figure.subplots(2, 1, height_ratios=[2.6, 0.4 + 0.24 * labels])
    _by_layer(above, data, kinds)
    _by_expert(figure, below, data["log_odds"].sel(layer=chosen).transpose("label", "expert"), chosen)
    return figure


def _by_layer(ax: Axes, data: xr.Dataset, kinds: list[str]) -> None:
    layers, interval = np.arange(len(kinds)), data["shuffled_interval"]
    low, high = (interval.sel(bound=end) for end in ("low", "high"))
    ax.vlines(layers, low, high, color=GREY, alpha=0.5, linewidth=max(1.5, min(6, 120 / len(layers))))
    colours = [COLOURS[kind] for kind in kinds]
    faces = np.where(data["p_value"] < _SURE, colours, "white")
    ax.scatter(layers, data["information"], s=22, facecolors=faces, edgecolors=colours, zorder=3)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(f"information ({data['information'].attrs['units']})")
    ax.grid(axis="y")
    layer_ticks(ax.xaxis, data)
    shuffled = Line2D([], [], color=GREY, alpha=0.5, linewidth=4, label="shuffled labels")
    name_kinds(ax, kinds, shuffled)
    ax.set_title("Information on the label")


def _by_expert(figure: Figure, ax: Axes, log_odds: xr.DataArray, layer: int) -> None:
    most = float(np.nanmax(np.abs(log_odds))) or 1.0
    mesh = ax.pcolormesh(
        np.arange(log_odds.sizes["expert"]),
        np.arange(log_odds.sizes["label"]),
        log_odds,
        cmap=DIVERGING,
        vmin=-most,
        vmax=most,
        rasterized=True,
    )
    ax.set_yticks(range(log_odds.sizes["label"]), labels=[str(label) for label in log_odds["label"].values])
    ax.invert_yaxis()
    ax.set_xlabel(f"expert of layer {layer}")
    figure.colorbar(mesh, ax=ax, aspect=8, label="log odds (nat)")
