"""Intervals, held to textbook cases and to how often they cover the truth."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from qwenlab.stats.formulas.resampling import bootstrap, fold_draws, jackknife


def leave_one_out(values):
    return (values.sum() - values) / (len(values) - 1)


def test_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=8)
    told = jackknife(values.mean(), leave_one_out(values), np.full(8, True), 0.9)
    assert_allclose(told, stats.t.interval(0.9, 7, values.mean(), stats.sem(values)))


def test_jackknife_passes_over_empty_folds():
    values = np.random.default_rng(1).normal(size=5)
    padded = np.append(leave_one_out(values), [np.nan, 7.0, values.mean()])
    held = np.array([True] * 5 + [False] * 3)
    expected = jackknife(values.mean(), leave_one_out(values), np.full(5, True), 0.95)
    assert_allclose(jackknife(values.mean(), padded, held, 0.95), expected)


@pytest.mark.parametrize("held", [[True, False], [False, False]])
def test_jackknife_of_fewer_than_two_folds_knows_nothing(held):
    assert np.isnan(jackknife(np.array(1.0), np.array([1.0, 1.0]), np.array(held), 0.95)).all()


def test_jackknife_of_a_ratio_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(1000):
        tokens = rng.integers(50, 150, 8)
        total = tokens * rng.normal(3, 0.5, 8)  # what a text has in common is larger than the noise of its tokens
        left_out = (total.sum() - total) / (tokens.sum() - tokens)
        low, high = jackknife(total.sum() / tokens.sum(), left_out, np.full(8, True), 0.95)
        covered.append(low <= 3 <= high)
    assert 0.92 < np.mean(covered) < 0.98


def test_fold_draws_take_as_many_folds_each_alike():
    drawn = fold_draws(8, 4000, np.random.default_rng(3))
    assert (drawn.sum(axis=1) == 8).all()
    assert_allclose(drawn.mean(axis=0), 1, atol=0.1)


def test_bootstrap_lies_around_the_estimate():
    drawn = np.random.default_rng(4).normal(100, 2, (20_000, 3))
    told = bootstrap(np.zeros(3), drawn, 0.95)
    assert_allclose(told, np.tile(np.array([-1.96, 1.96]) * 2, (3, 1)), atol=0.15)
