"""Information of routing about the label of the text, by layer and by expert."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.arguments import choice
from qwenlab.plots.base.drawing import colours_of, ends, need
from qwenlab.plots.base.panels import (
    ManyAxes,
    figure_of,
    layer_ticks,
    layer_width,
    name_kinds,
    names_of,
    panels,
    stroke,
)
from qwenlab.plots.style import DIVERGING, GREY, style

_SIGNIFICANT = 0.05


@style()
def specialisation(statistics: xr.Dataset, *, layer: int | None = None, axes: ManyAxes = None) -> Figure:
    """Information of routing about the label by layer, with its shuffled control, and the experts of one layer.

    statistics  of stats.specialisation
    layer       whose experts are drawn; by default the most informative one. Raises BadArgument for others

    Above: information (filled if p < 0.05), and in grey the interval for shuffled labels. Below: log odds of each
    expert for each label, green if likelier than for the other labels.
    """
    data = need(statistics, "specialisation", "information", "shuffled", "shuffled_interval", "p_value", "log_odds")
    layers = data["layer"].values.tolist()
    most = layers[int(data["information"].argmax("layer"))]
    chosen = most if layer is None else choice("specialisation", "layer", layer, layers)
    labels, experts = data.sizes["label"], data.sizes["expert"]
    width = max(layer_width(data, least=7.0), min(11.0, 3 + 0.04 * experts))
    ratios = [2.6, 0.4 + 0.24 * labels]
    shown = panels(axes, (2, 1), width, 3.6 + 0.24 * labels, height_ratios=ratios)
    above, below = shown.axes
    _by_layer(above, data)
    _by_expert(below, data["log_odds"].sel(layer=chosen).transpose("label", "expert"), chosen)
    return shown.figure


def _by_layer(ax: Axes, data: xr.Dataset) -> None:
    """Draw the information of each layer over that of shuffled labels."""
    colours = colours_of(data)
    layers = np.arange(len(colours))
    width = max(1.5, min(6, 120 / len(layers)))
    ax.vlines(layers, *ends(data["shuffled_interval"]), color=GREY, alpha=0.5, linewidth=width)
    faces = np.where(data["p_value"] < _SIGNIFICANT, colours, "white")
    ax.scatter(layers, data["information"], s=22, facecolors=faces, edgecolors=colours, zorder=3)
    label = f"information ({data['information'].attrs['units']})"
    ax.set(title="Information about the label", ylabel=label, ylim=(0, None))
    ax.grid(axis="y")
    layer_ticks(ax.xaxis, data)
    name_kinds(ax, data, stroke("shuffled labels", GREY, 4, alpha=0.5))


def _by_expert(ax: Axes, log_odds: xr.DataArray, layer: int) -> None:
    """Draw log odds [label, expert] as a heat map."""
    most = float(np.nanmax(np.abs(log_odds))) or 1.0
    x, y = (np.arange(log_odds.sizes[dim]) for dim in ("expert", "label"))
    mesh = ax.pcolormesh(x, y, log_odds, cmap=DIVERGING, vmin=-most, vmax=most, rasterized=True)
    ax.set_yticks(y, labels=names_of(log_odds, "label"))
    ax.invert_yaxis()
    ax.set_xlabel(f"expert of layer {layer}")
    figure_of(ax).colorbar(mesh, ax=ax, aspect=8, label="log odds\n(nat)")
