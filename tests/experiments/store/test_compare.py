"""Comparison of runs and stores: differing facts, and metrics that moved beyond noise."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from qwenlab import experiments
from qwenlab.errors import CannotCompare
from qwenlab.experiments.store.compare import _interval
from tests.experiments.conftest import written

RNG = np.random.default_rng(0)
BASE = RNG.normal(3, 1, 40)


def rows(values, name="loss", units="nat"):
    return [(name, {"text": text}, float(value), units) for text, value in enumerate(values)]


def test_paired_differences_see_what_means_hide(tmp_path):
    """A shift of 0.05 under a spread of 1 between texts: nothing unpaired would find it."""
    old = written(tmp_path, 1, rows(BASE))
    new = written(tmp_path, 2, rows(BASE + RNG.normal(0.05, 0.02, 40)))
    found = experiments.compare(old, new, store=tmp_path)
    (row,) = found.metrics.to_dict("records")
    assert (row["metric"], row["units"], row["n"], row["unit"], row["moved"]) == ("loss", "nat", 40, "text", True)
    assert row["low"] < 0.05 < row["high"]
    assert row["difference"] == pytest.approx(row["new"] - row["old"])
    assert found.moved
    assert found.worse == ["loss"]  # lower is better


def test_noise_alone_does_not_move(tmp_path):
    old = written(tmp_path, 1, rows(BASE))
    new = written(tmp_path, 2, rows(BASE + RNG.normal(0, 0.1, 40)))
    found = experiments.compare(old, new, store=tmp_path)
    assert list(found.metrics["moved"]) == [False]
    assert not found.moved


def test_one_value_has_no_interval(tmp_path):
    old = written(tmp_path, 1, [("loss", {}, 1.0, "nat"), ("same", {}, 2.0, "1")])
    new = written(tmp_path, 2, [("loss", {}, 1.5, "nat"), ("same", {}, 2.0, "1")])
    found = experiments.compare(old, new, store=tmp_path)
    assert list(found.metrics["moved"]) == [None, None]
    assert found.metrics["low"].isna().all()
    assert found.moved  # by 0.5, with unknown noise
    assert found.worse == []


def test_facts_that_differ_are_listed(tmp_path):
    old = written(tmp_path, 1, [], parameters={"x": 1, "y": [1]}, versions={"torch": "1"})
    new = written(tmp_path, 2, [], parameters={"x": 2, "y": [1]}, versions={"torch": "2"}, seed=3)
    facts = experiments.compare(old, new, store=tmp_path).facts
    assert facts.to_dict("records") == [
        {"what": "parameters.x", "old": 1, "new": 2},
        {"what": "seed", "old": 0, "new": 3},
        {"what": "versions.torch", "old": "1", "new": "2"},
    ]


def test_other_labels_or_units_are_refused(tmp_path):
    one = written(tmp_path, 1, rows(BASE[:3]))
    fewer = written(tmp_path, 2, rows(BASE[:2]))
    bits = written(tmp_path, 3, rows(BASE[:3], units="bit"))
    with pytest.raises(
        CannotCompare, match=r"'loss' has different labels in the two runs: 1 are in only one, such as .*2"
    ):
        experiments.compare(one, fewer, store=tmp_path)
    with pytest.raises(CannotCompare, match="'loss' has the units nat in one run and bit in the other"):
        experiments.compare(one, bits, store=tmp_path)


def test_nan_is_left_out(tmp_path):
    gap = BASE[:5].copy()
    gap[2] = np.nan
    old, new = written(tmp_path, 1, rows(BASE[:5])), written(tmp_path, 2, rows(gap))
    assert list(experiments.compare(old, new, store=tmp_path).metrics["n"]) == [4]


class TestStores:
    def test_runs_of_the_same_parameters_are_compared(self, tmp_path):
        for number in range(1, 4):
            written(tmp_path / "old", number, rows(BASE), parameters={"x": number})
            written(tmp_path / "new", 10 + number, rows(BASE + 0.1), parameters={"x": number})
        written(tmp_path / "new", 99, rows(BASE + 50), parameters={"x": 50})
        found = experiments.compare_stores(tmp_path / "old", tmp_path / "new")
        (row,) = found.metrics.to_dict("records")
        assert (found.points, row["n"], row["moved"]) == (3, 40, True)
        assert row["difference"] == pytest.approx(0.1)

    def test_without_pairs_runs_are_resampled(self, tmp_path):
        for number in range(1, 7):
            written(tmp_path / "old", number, [("loss", {}, number, "nat")], parameters={"x": number})
            higher = number + 0.5 + number / 100
            written(tmp_path / "new", number, [("loss", {}, higher, "nat")], parameters={"x": number})
        (row,) = experiments.compare_stores(tmp_path / "old", tmp_path / "new").metrics.to_dict("records")
        assert (row["n"], row["unit"], row["moved"]) == (6, "run", True)
        assert 0.5 < row["low"] < row["high"] < 0.57

    def test_with_nothing_in_common_are_refused(self, tmp_path):
        written(tmp_path / "old", 1, rows(BASE), parameters={"x": 1})
        written(tmp_path / "new", 1, rows(BASE), parameters={"x": 2})
        with pytest.raises(CannotCompare, match=r"No run in .*new has the parameters and the seed of one in .*old"):
            experiments.compare_stores(tmp_path / "old", tmp_path / "new")


@pytest.mark.slow
def test_many_metrics_share_one_error_rate(tmp_path):
    """Twenty metrics of pure noise: with an interval of 95 % each, one would move on average."""
    noise = np.random.default_rng(1)
    names = [f"m{number}" for number in range(20)]
    old = [row for name in names for row in rows(BASE, name)]
    new = [row for name in names for row in rows(BASE + noise.normal(0, 1, 40), name)]
    found = experiments.compare(written(tmp_path, 1, old), written(tmp_path, 2, new), store=tmp_path)
    assert not found.moved
    narrow = [_interval(noise.normal(0, 1, 40), 0.95) for _ in range(100)]
    assert any(low > 0 or high < 0 for low, high in narrow)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
def test_the_interval_is_that_of_a_bootstrap_written_out(values):
    """A slow one, with other draws."""
    values = np.array(values)
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    n = len(values)
    means = values[draws].mean(axis=1)
    # As far in percentiles as Student's interval is in standard errors.
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    error = 5 * np.sqrt(2 * tail / len(draws)) + 2 / len(draws)  # of a share, between two sets of draws
    low, high = _interval(values, 0.95)
    tiny = 1e-9 * (1 + np.abs(values).max())
    for outside, within in ((means < low - tiny, means <= low + tiny), (means > high + tiny, means >= high - tiny)):
        assert outside.mean() <= tail + error
        assert within.mean() >= tail - error
