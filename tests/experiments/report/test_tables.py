"""Numbers and tables of a report, as text."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from qwenlab.experiments.report.tables import estimate, interval, labelled, markdown, spread, unwrap, wide


@pytest.mark.parametrize(
    ("values", "said"),
    [([1.0, 2.0, 4.0], "2 [1, 4]"), ([0.12345] * 3, "0.123"), ([1200.4, 99.5, 150.0], "150 [99.5, 1,200]")],
)
def test_a_spread_is_median_smallest_and_largest(values, said):
    assert spread(pd.Series(values)) == said


def test_an_interval_is_students_of_the_mean():
    # t is 3.182 at 3 degrees of freedom; the standard error of 1, 2, 3, 6 is 2.160 / 2
    assert interval(pd.Series([1.0, 2.0, 3.0, 6.0])) == "3 [-0.437, 6.44]"
    assert interval(pd.Series([0.12345] * 3)) == "0.123"


def test_the_index_is_the_first_column():
    frame = pd.DataFrame({"a": ["x"]}, index=pd.Index([7], name="layer"))
    assert markdown(frame) == "| layer | a |\n| --- | --- |\n| 7 | x |"


def test_a_wide_table_names_kinds_and_parameters_and_keeps_the_order_of_words():
    values = pd.DataFrame(
        {
            "params.context": [1024, 64, 1024, 64],
            "kind": ["linear_attention", "linear_attention", "full_attention", "full_attention"],
            "step": ["late", "early", "late", "early"],
            "value": [1.0, 2.0, 3.0, 4.0],
        }
    )
    by_context = wide(values, "kind", along="context", heading="{:,} tokens")
    assert markdown(by_context).splitlines()[0] == "| kind | 64 tokens | 1,024 tokens |"
    assert markdown(by_context).splitlines()[2:] == ["| attention | 4 | 3 |", "| DeltaNet | 2 | 1 |"]
    assert list(wide(values, "kind", along="step").columns) == ["late", "early"]


def test_labelled_rows():
    table = labelled({("toy", "layer 0"): ["1", "2"]}, ["checkpoint", "without"], ["loss", "recall"])
    assert markdown(table).splitlines()[0] == "| checkpoint | without | loss | recall |"
    assert markdown(table).splitlines()[2] == "| toy | layer 0 | 1 | 2 |"


@pytest.mark.parametrize(
    ("name", "bounds", "significant", "text"),
    [
        ("effect", [0.4, 0.6], True, "**0.5 [0.4, 0.6]**"),
        ("effect", [0.4, 0.6], False, "0.5 [0.4, 0.6]"),
        ("effect_above_controls", [0.4, 0.6], True, "0.5 [0.4, 0.6]"),
        ("effect", [np.nan, np.nan], False, "0.5"),
    ],
)
def test_an_estimate_has_its_interval_and_is_bold_where_an_effect_is_significant(name, bounds, significant, text):
    data = xr.Dataset({name: 0.5, f"{name}_interval": ("bound", bounds), "significant": significant})
    assert estimate(data, name, "{:.1f}".format) == text


def test_an_item_of_a_list_is_one_line():
    assert unwrap("- one,\n  two.\n") == "- one, two."
