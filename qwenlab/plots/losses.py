"""Losses by class of token and domain."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need, quantity
from qwenlab.plots.style import PALETTE, new_figure, styled

_MARKS = "osD^vP"


@styled
def losses(statistics: xr.Dataset) -> Figure:
    """Loss of the tokens of each class, and bits per byte of all tokens, with intervals; a colour and mark a domain.

    statistics  of stats.losses, with its domains or without. Raises BadArgument where domains are more than colours.
    """
    data = need(statistics, "losses", "loss", "loss_interval", "bits_per_byte", "bits_per_byte_interval", "tokens")
    if "domain" not in data.dims:
        data = data.expand_dims(domain=["all texts"])
    names = [str(name) for name in data["domain"].values]
    if len(names) > len(PALETTE):
        raise BadArgument(f"{len(names)} domains, {len(PALETTE)} colours.\nPick some: .sel(domain={names[:2]}).")
    classes = [str(name) for name in data["token_class"].values]
    figure = new_figure(8.0, 1.4 + max(0.36, 0.13 * len(names)) * len(classes))
    left, right = figure.subplots(1, 2, width_ratios=[2.6, 1])
    shifts = (np.arange(len(names)) - (len(names) - 1) / 2) * min(0.16, 0.7 / len(names))
    for place, name in enumerate(names):
        here = data.sel(domain=data["domain"].values[place])
        _points(left, here["loss"], here["loss_interval"], np.arange(len(classes)) + shifts[place], place, name)
        whole = here.isel(token_class=[classes.index("all")])
        _points(right, whole["bits_per_byte"], whole["bits_per_byte_interval"], np.array([place]), place, name)
    left.set_yticks(range(len(classes)), labels=classes)
    left.set_ylabel("class of token")
    right.set_yticks(range(len(names)), labels=names)
    for ax, variable, title in (
        (left, data["loss"], "Loss by class"),
        (right, data["bits_per_byte"], "All tokens"),
    ):
        ax.invert_yaxis()
        ax.set_xlim(left=0)
        ax.margins(x=0.08)
        ax.grid(axis="x")
        ax.set_xlabel(quantity(variable))
        ax.set_title(title)
    right.set_ylim(len(names) - 0.5, -0.5)
    tokens, texts = int(data["tokens"].sel(token_class="all").sum()), int(data.attrs["texts"])
    level = float(data.attrs["level"])
    figure.supxlabel(
        f"n = {tokens:,} tokens of {texts:,} texts · bars: {level:.0%} intervals",
        x=0.01,
        ha="left",
        fontsize=7.5,
        color="0.35",
    )
    return figure


def _points(ax: Axes, values: xr.DataArray, interval: xr.DataArray, y: np.ndarray, place: int, label: str) -> None:
    """Values and their intervals along x, at these heights."""
    colour = PALETTE[place]
    ax.hlines(y, interval.sel(bound="low"), interval.sel(bound="high"), colors=colour, linewidth=1.2)
    ax.plot(values, y, color=colour, marker=_MARKS[place], linestyle="", label=label)
