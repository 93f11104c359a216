"""The small things that figures share."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from qwenlab.plots.base.drawing import end_labels, quantity
from qwenlab.plots.base.panels import layer_ticks
from qwenlab.plots.base.ticks import binary


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.125, "1/8"), (1, "1"), (64, "64"), (1024, "1 k"), (2**20, "1 M"), (1.5 * 2**30, "1.5 G")],
)
def test_numbers_of_tokens_are_short(value, text):
    assert binary(value) == text


@pytest.mark.parametrize(
    ("units", "name", "text"),
    [
        ("token", "half-life", "half-life (tokens)"),
        ("1", "write strength", "write strength"),
        ("expert", "experts not yet used", "experts not yet used"),
        ("nat", "entropy", "entropy (nat)"),
    ],
)
def test_an_axis_says_its_quantity_and_units_once(units, name, text):
    assert quantity(xr.DataArray(0.0, attrs={"units": units, "long_name": name})) == text


@pytest.mark.parametrize(("layers", "step"), [(8, 1), (20, 1), (40, 4), (64, 4), (96, 8)])
def test_many_layers_are_named_every_fourth_or_eighth(layers, step):
    ax = Figure().subplots()
    layer_ticks(ax.xaxis, xr.Dataset(coords={"layer": np.arange(layers)}))
    assert ax.get_xticks().tolist() == list(range(0, layers, step))
    assert ax.get_xlabel() == "layer"


def test_labels_at_the_ends_of_lines_never_overlap():
    ax = Figure(figsize=(4, 3)).subplots()
    ax.set_ylim(0, 10)
    end_labels(ax, [(5, "a", "k"), (5, "b", "k"), (5.1, "c", "k"), (10, "d", "k"), (10, "e", "k")])
    ax.figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 3 for lower, upper in pairwise(boxes))
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c", "d", "e"]
