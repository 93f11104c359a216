"""How far the gates are open."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import kinds_of, layer_ticks, layer_width, need
from qwenlab.plots.style import name_kinds, new_figure, shades, styled

_COARSE = 4  # of the 128 bins, drawn as one


@styled
def gates(statistics: xr.Dataset) -> Figure:
    """Histograms over tokens of the output gates of both kinds and of DeltaNet's write strength, a column a head.

    statistics  of stats.gates. The heads of a layer stand side by side; the darker, the more of the head's tokens.
    """
    data = need(statistics, "gates", "mean_gate_share")
    rows = [("mean_gate", "gate_bin", "Mean value of the output gate"), ("beta", "beta_bin", "Write strength")]
    rows = [row for row in rows if f"{row[0]}_share" in data]
    figure = new_figure(layer_width(data, least=5.5), 0.5 + 2.1 * len(rows))
    for ax, (name, dim, title) in zip(np.atleast_1d(figure.subplots(len(rows), 1, sharex=True)), rows, strict=True):
        _columns(ax, data[f"{name}_share"].coarsen({dim: _COARSE}).mean().transpose("layer", dim, "head"))
        ax.set_ylabel(data[name].attrs["long_name"].removesuffix(" of the output gate"))
        ax.set_title(title)
        ax.set_ylim(0, 1)
        ax.set_xlim(-0.55, data.sizes["layer"] - 0.45)
        if name == rows[0][0]:
            name_kinds(ax, kinds_of(data))
        if name == rows[-1][0]:
            layer_ticks(ax.xaxis, data)
    return figure


def _columns(ax: Axes, share: xr.DataArray) -> None:
    """Shares [layer, bin, head] as columns of shades; heads and layers without any are left blank."""
    norm = PowerNorm(0.5, vmin=0, vmax=float(share.max()))
    edges = np.linspace(0, 1, share.shape[1] + 1)
    for place, kind in enumerate(kinds_of(share)):
        here = share.isel(layer=place).dropna("head", how="any")
        if here.sizes["head"]:
            x = place + np.linspace(-0.45, 0.45, here.sizes["head"] + 1)
            ax.pcolormesh(x, edges, here, cmap=shades(kind), norm=norm, rasterized=True)
