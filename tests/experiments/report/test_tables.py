"""What stands in the tables of a report."""

import pandas as pd
import pytest

from qwenlab.experiments.report.tables import interval, markdown, spread


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
