"""Shades of DeltaNet layers by depth: light for the first, dark for the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from qwenlab.checkpoint.families import DELTANET
from qwenlab.plots.base.panels import figure_of
from qwenlab.plots.style import shades


def layer_shades(values: xr.Dataset | xr.DataArray) -> np.ndarray:
    """Return colours [layer, channel], light to dark."""
    return np.asarray(shades(DELTANET)(np.linspace(0.3, 1.0, values.sizes["layer"])))


def layer_bar(axes: Sequence[Axes], data: xr.Dataset) -> None:
    """Add a colour bar that names the layers."""
    layers = data["layer"].values
    colours = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(layer_shades(data)))
    bar = figure_of(axes[0]).colorbar(colours, ax=list(axes), pad=0.02, aspect=30)
    step = -(-len(layers) // 10)
    bar.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])
    bar.minorticks_off()
    bar.set_label("DeltaNet layer")
