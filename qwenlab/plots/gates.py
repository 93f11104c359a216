"""Histograms of output gates and write strengths, by head."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import need
from qwenlab.plots.base.panels import ManyAxes, layer_width, name_kinds, names_of, panels
from qwenlab.plots.style import shades, style

_COARSE = 4  # adjacent bins of 128 are drawn as one


@style()
def gates(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Histograms over tokens of the output gates of both kinds and of DeltaNet's write strength, one column per head.

    statistics  of stats.gates. Heads of a layer are side by side; darker means a larger share of the head's tokens
    axes        two, above each other, or one if there is no write strength
    """
    data = need(statistics, "gates", "mean_gate_share")
    rows = [("mean_gate", "gate_bin", "Mean value of the output gate"), ("beta", "beta_bin", "Write strength")]
    rows = [row for row in rows if f"{row[0]}_share" in data]
    shown = panels(axes, (len(rows), 1), layer_width(data, least=5.5), 0.5 + 2.1 * len(rows), sharex=True)
    for ax, (name, dim, title) in zip(shown.axes, rows, strict=True):
        top = _histograms(ax, data[f"{name}_share"].coarsen({dim: _COARSE}).mean().transpose("layer", dim, "head"))
        label = data[name].attrs["long_name"].removesuffix(" of the output gate")
        ax.set(title=title, ylabel=label, xlim=(-0.55, data.sizes["layer"] - 0.45), ylim=(0, top))
    name_kinds(shown.axes[0], data)
    shown.layers(data)
    return shown.figure


def _histograms(ax: Axes, share: xr.DataArray) -> float:
    """Draw shares [layer, bin, head] as columns of shades, and return the upper end of the bins.

    Heads and layers without values stay blank.
    """
    norm = PowerNorm(0.5, vmin=0, vmax=float(share.max()))
    edges = equal_edges(share, share.dims[1])
    for place, kind in enumerate(names_of(share, "kind")):
        here = share.isel(layer=place).dropna("head", how="any")
        if here.sizes["head"]:
            x = place + np.linspace(-0.45, 0.45, here.sizes["head"] + 1)
            ax.pcolormesh(x, edges, here, cmap=shades(kind), norm=norm, rasterized=True)
    return float(edges[-1])


def equal_edges(share: xr.DataArray, dim: Hashable) -> np.ndarray:
    """Edges of equal bins from 0, whose coordinate tells their middles or lower edges."""
    return np.arange(share.sizes[dim] + 1) * float(share[dim].diff(dim)[0])
