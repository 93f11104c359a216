"""Numbers with their intervals, as text."""

import numpy as np
import pytest
import xarray as xr

import qwenlab as ql
from qwenlab.errors import BadArgument

DATA = xr.Dataset(
    {
        "share": (("layer", "head"), [[0.5, np.nan], [0.12345, 1234.5]]),
        "share_interval": (
            ("bound", "layer", "head"),
            [[[0.4, np.nan], [0.1, 1000.0]], [[0.6, np.nan], [0.2, 2000.0]]],
        ),
    },
    {"bound": ["low", "high"], "layer": [0, 3], "head": [0, 1]},
)


def test_one_number():
    assert ql.notebook.interval(DATA.sel(layer=3, head=0), "share") == "0.123 [0.1, 0.2]"
    assert ql.notebook.interval(DATA.sel(layer=3, head=0), "share", ".2f") == "0.12 [0.10, 0.20]"


def test_a_number_for_each_head_whatever_the_order_of_the_bounds():
    expected = ["0.5 [0.4, 0.6]", "–", "0.123 [0.1, 0.2]", "1.23e+03 [1e+03, 2e+03]"]
    assert ql.notebook.intervals(DATA, "share", missing="–") == expected
    assert ql.notebook.intervals(DATA.transpose(..., "bound"), "share", missing="–") == expected


def test_several_numbers_are_not_one():
    with pytest.raises(BadArgument, match=r"'share' has 4 numbers: select one with data\.sel\(\.\.\.\)"):
        ql.notebook.interval(DATA, "share")
