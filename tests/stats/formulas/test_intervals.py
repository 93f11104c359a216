"""Intervals, held to textbook cases and to how often they cover the truth."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from qwenlab.stats.formulas import intervals
from qwenlab.stats.formulas.intervals import bootstrap, by_cluster, jackknife, share, share_of_sums


def leave_one_out(values):
    return (values.sum() - values) / (len(values) - 1)


def test_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=8)
    result = jackknife(values.mean(), leave_one_out(values), np.full(8, True), 0.9)
    assert_allclose(result, stats.t.interval(0.9, 7, values.mean(), stats.sem(values)))


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


def rate(sums):
    return sums[..., 1:] / sums[..., :1]


def test_bootstrap_of_a_ratio_by_loops():
    sums = np.array([[4.0, 1.0], [6.0, 5.0], [5.0, 2.0]])
    result = bootstrap(sums, rate, level=0.6, resamples=700, seed=5)  # more draws than are made at a time
    times = np.random.default_rng(5)
    drawn = []
    for block in (256, 256, 188):
        for row in times.multinomial(3, [1 / 3] * 3, size=block):
            rounds, accepted = (sum(n * each[column] for n, each in zip(row, sums, strict=True)) for column in (0, 1))
            drawn.append(accepted / rounds)
    reach = np.sqrt(3 / 2) * stats.t.ppf(0.8, 2)  # of 3 clusters: Student's interval, with the unbiased spread
    assert_allclose(result, [np.quantile(drawn, [stats.norm.cdf(-reach), stats.norm.cdf(reach)])])


def test_bootstrap_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = []
    for seed in range(600):
        low, high = bootstrap(rng.normal(3, 1, (8, 1)), lambda sums: sums / 8, level=0.95, resamples=300, seed=seed)[0]
        covered.append(low <= 3 <= high)
    assert 0.92 < np.mean(covered) < 0.97


def test_bootstrap_of_one_cluster_knows_nothing():
    assert np.isnan(bootstrap(np.ones((1, 2)), rate, level=0.9, resamples=9, seed=0)).all()


def test_bootstrap_leaves_out_draws_without_a_value():
    sums = np.array([[0.0, 0.0, np.nan], [5.0, 2.0, 1.0]])

    def of(sums):
        return np.stack([sums[..., 1] / sums[..., 0], sums[..., 2]], axis=-1)

    result = bootstrap(sums, of, level=0.9, resamples=50, seed=0)
    assert_allclose(result, [[0.4, 0.4], [np.nan, np.nan]])


def wilson(right, trials, level=0.95):
    """Wilson's interval as scipy has it."""
    return stats.binomtest(right, trials).proportion_ci(level, method="wilson")


@pytest.mark.parametrize(("right", "ends"), [(128, (0.97, 1.0)), (0, (0.0, 0.03))])
def test_all_or_nothing_has_an_interval(right, ends):
    result = share(np.array(right / 128), np.full(8, right / 128), np.full(8, 16), 0.95)
    assert_allclose(result, ends, atol=0.005)
    assert_allclose(result, wilson(right, 128), atol=1e-12)


def test_clusters_that_agree_have_the_interval_of_independent_trials():
    result = share(np.array(0.5), np.full(8, 0.5), np.full(8, 10), 0.9)
    assert_allclose(result, wilson(40, 80, 0.9), atol=1e-12)


def test_clusters_that_differ_count_as_fewer_trials():
    """By hand: 4 clusters of 10 trials; the jackknife error of their mean is that of a mean of 4 values."""
    values = np.array([0.2, 0.9, 0.5, 0.6])
    result = share(values.mean(), leave_one_out(values), np.full(4, 10), 0.95)
    ratio = stats.t.ppf(0.975, 3) / stats.norm.ppf(0.975)
    p, effective = 0.55, 0.55 * 0.45 / (stats.sem(values) * ratio) ** 2
    z = stats.norm.ppf(0.975)
    middle = (p + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * np.sqrt(p * (1 - p) / effective + z**2 / (4 * effective**2))
    assert_allclose(result, [middle - half, middle + half])


def test_a_share_between_other_bounds_is_rescaled():
    values, how = np.array([0.2, 0.9, 0.5, 0.6]), dict(trials=np.full(4, 10), level=0.95)
    result = share(1 + 3 * values.mean(), 1 + 3 * leave_one_out(values), **how, least=1, most=4)
    assert_allclose(result, 1 + 3 * share(values.mean(), leave_one_out(values), **how))


@pytest.mark.parametrize("trials", [[5, 0], [0, 0]])
def test_a_share_of_fewer_than_two_clusters_knows_nothing(trials):
    assert np.isnan(share(np.array(1.0), np.array([np.nan, 1.0]), np.array(trials), 0.95)).all()


def rounds_of_prompts(rng, prompts, mean, spread, depth=3):
    """Sums [prompt, rounds, tested by place, accepted by place]: prompts differ by `spread` in log odds."""
    out = []
    for logit in mean + spread * rng.normal(size=prompts):
        rounds = int(rng.integers(16, 48))
        accepted = (rng.random((rounds, depth)) < 1 / (1 + np.exp(-logit))).cumprod(axis=1)
        tested = np.concatenate([np.ones((rounds, 1)), accepted[:, :-1]], axis=1)
        out.append([rounds, *tested.sum(axis=0), *accepted.sum(axis=0)])
    return np.array(out, float)


def rates(sums):
    """Unconditional and conditional rates of 3 places, and the acceptance length."""
    rounds, tested, accepted = sums[..., :1], sums[..., 1:4], sums[..., 4:]
    with np.errstate(invalid="ignore", divide="ignore"):
        length = 1 + accepted.sum(axis=-1, keepdims=True) / rounds
        return np.concatenate([accepted / rounds, accepted / tested, length], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [8, 32])
@pytest.mark.parametrize(("mean", "spread"), [(0.8, 0.0), (0.8, 0.5), (0.8, 1.0), (2.5, 0.7), (3.5, 0.7), (5.0, 0.5)])
def test_a_share_covers_the_truth_as_often_as_it_says(mean, spread, prompts):
    """Rates of acceptance from 0.3 to 0.99; of 7 rates together, so that chance leaves little room."""
    rng = np.random.default_rng(7)
    truth = rates(rounds_of_prompts(rng, 20_000, mean, spread).sum(axis=0))
    least, most = np.array([0, 0, 0, 0, 0, 0, 1]), np.array([1, 1, 1, 1, 1, 1, 4])
    covered = []
    for _ in range(800):
        sums = rounds_of_prompts(rng, prompts, mean, spread)
        trials = np.concatenate([np.repeat(sums[:, :1], 3, axis=1), sums[:, 1:4], sums[:, :1]], axis=1)
        result = share_of_sums(sums, rates, trials, 0.95, least=least, most=most)
        covered.append((result[:, 0] <= truth) & (truth <= result[:, 1]))
    assert 0.93 <= np.mean(covered) <= 0.98
    assert (np.mean(covered, axis=0) > 0.92).all()


def test_by_cluster_adds_up_rows_of_one_number():
    rows = np.array([[1, 10], [2, 20], [3, 30], [4, 40]])
    assert_allclose(by_cluster(rows, np.array([7, 2, 7, 5])), [[2, 20], [4, 40], [4, 40]])


@pytest.mark.parametrize("texts", [4, 8, 30])
def test_the_expanded_level_reaches_as_far_as_students_interval(texts):
    values = np.random.default_rng(texts).normal(size=texts)
    level = intervals.expanded_level(0.95, texts)
    reach = stats.norm.ppf(0.5 + level / 2) * values.std() / np.sqrt(texts)
    low, high = stats.t.interval(0.95, texts - 1, values.mean(), stats.sem(values))
    assert_allclose([values.mean() - reach, values.mean() + reach], [low, high])
    assert intervals.expanded_level(0.95, 1) == 0.95
    assert 1 - 1e-12 < intervals.expanded_level(0.95, 2) < 1  # no percentile reaches further, and it is a level still


def test_the_reach_of_a_mean_is_half_of_students_interval():
    values = np.random.default_rng(0).normal(size=4)
    low, high = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    assert_allclose(intervals.mean_reach(values, 0.9), (high - low) / 2)
    assert np.isnan(intervals.mean_reach(values[:1], 0.9))


def test_widening_adds_distances_in_squares():
    result = intervals.widened(np.array([2.0, 1.0]), np.array([[-1.0, 6.0], [1.0, 1.0]]), np.array([4.0, 0.5]))
    assert_allclose(result, [[2 - 5, 2 + np.sqrt(32)], [0.5, 1.5]])
