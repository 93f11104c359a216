"""DeltaNet layers by their depth: light for the first ones, dark for the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from qwenlab.checkpoint.families import DELTANET
from qwenlab.plots.style import shades


def layer_shades(values: xr.Dataset | xr.DataArray) -> np.ndarray:
    """A colour a layer, DeltaNet's, light to dark."""
    return np.asarray(shades(DELTANET)(np.linspace(0.3, 1.0, values.sizes["layer"])))


def layer_bar(figure: Figure, axes: Sequence[Axes], data: xr.Dataset) -> None:
    """Which colour is which layer."""
    layers = data["layer"].values
    count = len(layers)
    shown = ListedColormap(layer_shades(data))
    bar = figure.colorbar(ScalarMappable(Normalize(-0.5, count - 0.5), shown), ax=list(axes), pad=0.02, aspect=30)
    step = -(-count // 10)
    bar.set_ticks(range(0, count, step), labels=[str(layer) for layer in layers[::step]])
    bar.minorticks_off()
    bar.set_label("DeltaNet layer")
