"""Intervals, held to textbook cases and to how often they cover the truth."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from qwenlab.stats.formulas.resampling import bootstrap, by_cluster, fold_draws, jackknife, percentile_interval


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


def share(sums):
    return sums[..., 1:] / sums[..., :1]


def test_percentile_interval_of_a_ratio_by_loops():
    sums = np.array([[4.0, 1.0], [6.0, 5.0], [5.0, 2.0]])
    told = percentile_interval(sums, share, level=0.6, resamples=700, seed=5)  # more draws than are made at a time
    times = np.random.default_rng(5)
    drawn = []
    for block in (256, 256, 188):
        for row in times.multinomial(3, [1 / 3] * 3, size=block):
            rounds, accepted = (sum(n * each[column] for n, each in zip(row, sums, strict=True)) for column in (0, 1))
            drawn.append(accepted / rounds)
    assert_allclose(told, [np.quantile(drawn, [0.2, 0.8])])


def test_percentile_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = {8: [], 32: []}
    for prompts, found in covered.items():
        for seed in range(400):
            rounds = rng.integers(30, 90, prompts)
            accepted = rng.binomial(rounds, rng.beta(6, 4, prompts))  # prompts differ by more than chance
            sums = np.stack([rounds, accepted], axis=1)
            low, high = percentile_interval(sums, share, level=0.95, resamples=300, seed=seed)[0]
            found.append(low <= 0.6 <= high)
    assert 0.84 < np.mean(covered[8]) < 0.94  # few prompts: too narrow, as docstrings say
    assert 0.91 < np.mean(covered[32]) < 0.98


def test_percentile_interval_of_one_cluster_knows_nothing():
    assert np.isnan(percentile_interval(np.ones((1, 2)), share, level=0.9, resamples=9, seed=0)).all()


def test_percentile_interval_leaves_out_draws_without_a_value():
    sums = np.array([[0.0, 0.0, np.nan], [5.0, 2.0, 1.0]])

    def of(sums):
        return np.stack([sums[..., 1] / sums[..., 0], sums[..., 2]], axis=-1)

    told = percentile_interval(sums, of, level=0.9, resamples=50, seed=0)
    assert_allclose(told, [[0.4, 0.4], [np.nan, np.nan]])


def test_by_cluster_adds_up_rows_of_one_number():
    rows = np.array([[1, 10], [2, 20], [3, 30], [4, 40]])
    assert_allclose(by_cluster(rows, np.array([7, 2, 7, 5])), [[2, 20], [4, 40], [4, 40]])
