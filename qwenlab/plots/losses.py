"""Loss by token class and domain."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import interval_points, need, need_colours, quantity, shifts
from qwenlab.plots.base.panels import ManyAxes, names_of, panels
from qwenlab.plots.style import style


@style()
def losses(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Loss by token class, and bits per byte of all tokens, with intervals; one colour and marker per domain.

    statistics  of stats.losses, with or without domains
    axes        two, side by side

    Raises BadArgument for more domains than there are colours.
    """
    data = need(statistics, "losses", "loss", "loss_interval", "bits_per_byte", "bits_per_byte_interval", "tokens")
    if "domain" not in data.dims:
        data = data.expand_dims(domain=["all texts"])
    names, classes = names_of(data, "domain"), names_of(data, "token_class")
    need_colours("domain", names)
    height = 1.4 + max(0.36, 0.13 * len(names)) * len(classes)
    shown = panels(axes, (1, 2), 8.0, height, width_ratios=[2.6, 1], grid="x")
    left, right = shown.axes
    for place, (name, shift) in enumerate(zip(names, shifts(len(names), 0.7), strict=True)):
        here = data.isel(domain=place)
        interval_points(left, here, "loss", np.arange(len(classes)) + shift, place, name)
        interval_points(
            right, here.isel(token_class=[classes.index("all")]), "bits_per_byte", np.array([place]), place, name
        )
    left.set_yticks(range(len(classes)), labels=classes)
    left.set_ylabel("token class")
    right.set_yticks(range(len(names)), labels=names)
    for ax, variable in ((left, data["loss"]), (right, data["bits_per_byte"])):
        ax.set_xlim(left=0)
        ax.margins(x=0.08)
        ax.set_xlabel(quantity(variable))
    left.set(title="Loss by class", ylim=(len(classes) - 0.5, -0.5))
    right.set(title="All tokens", ylim=(len(names) - 0.5, -0.5))
    tokens, texts = int(data["tokens"].sel(token_class="all").sum()), int(data.attrs["texts"])
    shown.note([f"n = {tokens:,} tokens of {texts:,} texts", f"bars: {float(data.attrs['level']):.0%} intervals"])
    return shown.figure
