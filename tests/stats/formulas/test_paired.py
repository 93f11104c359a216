"""Tests and ranks of paired differences, held to every pattern of signs gone through one by one."""

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from qwenlab.stats.formulas import paired

HOW = dict(draws=2000, seed=0)
# eighths are exact in binary, so that sums that are equal are equal to the last bit, and ties are met often
EIGHTHS = st.integers(-16, 16).map(lambda number: number / 8)


def units(most_units=4, most_texts=6):
    shapes = st.tuples(st.integers(1, most_units), st.integers(1, most_texts))
    return shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=EIGHTHS))


def patterns(texts):
    return list(product([1, -1], repeat=texts))


def slow_flip_p(row):
    sums = [abs(sum(s * x for s, x in zip(signs, row, strict=True))) for signs in patterns(len(row))]
    return np.mean([each >= abs(sum(row)) - 1e-12 for each in sums])


def scaled(row, signs):
    size = np.sqrt(sum(x * x for x in row))
    return 0.0 if size == 0 else abs(sum(s * x for s, x in zip(signs, row, strict=True))) / size


@given(units())
@example(np.array([[1.3, -1.6, 0.3, 0.0]]))
def test_flip_p_goes_through_all_signs(values):
    assert_allclose(paired.flip_p(values, **HOW), [slow_flip_p(row) for row in values])


@given(units(), st.randoms(use_true_random=False))
def test_flip_p_knows_no_order_of_texts_and_no_side(values, random):
    order = random.sample(range(values.shape[1]), values.shape[1])
    p = paired.flip_p(values, **HOW)
    assert_allclose(paired.flip_p(values[:, order], **HOW), p)
    assert_allclose(paired.flip_p(-3 * values, **HOW), p)
    assert (p >= 2.0 ** (1 - values.shape[1])).all()


def test_flip_p_of_random_signs_comes_near_and_is_never_0():
    values = np.random.default_rng(1).normal(0.4, 1, (3, 12))
    exact = paired.flip_p(values, draws=2**11, seed=0)
    drawn = paired.flip_p(values, draws=2000, seed=5)
    assert_allclose(exact, [slow_flip_p(row) for row in values])
    assert (exact != drawn).any()
    assert_allclose(drawn, exact, atol=4 * np.sqrt(0.25 / 2000))
    assert_array_equal(drawn, paired.flip_p(values, draws=2000, seed=5))
    assert paired.flip_p(np.ones((1, 40)), draws=50, seed=0) == pytest.approx(1 / 50)  # the observed one counts


def test_differences_of_arithmetic_are_none():
    values = np.full((1, 8), paired.TINY / 2)
    assert paired.flip_p(values, **HOW) == 1
    assert paired.max_p(values, **HOW) == 1
    assert not paired.larger(np.concatenate([values, 0 * values]), level=0.9, **HOW).any()


@given(units())
@example(np.array([[0.0, 0.0, 0.125, 0.25, 1.25, -1.625]]))
def test_max_p_goes_through_all_signs(values):
    largest = [max(scaled(row, signs) for row in values) for signs in patterns(values.shape[1])]
    expected = [np.mean([m >= scaled(row, signs=[1] * len(row)) - 1e-12 for m in largest]) for row in values]
    p = paired.max_p(values, **HOW)
    assert_allclose(p, expected)
    assert (p >= paired.flip_p(values, **HOW) - 1e-12).all()


P = st.floats(0, 1) | st.just(np.nan)


def slow_holm(p):
    """The smallest alpha at which step-down rejection reaches each."""
    known = [each for each in p if not np.isnan(each)]
    out = []
    for each in p:
        below = sorted(other for other in known if other <= each)
        steps = [(len(known) - sum(o < other for o in known)) * other for other in below]
        out.append(np.nan if np.isnan(each) else min(1, max(steps)))
    return out


@given(st.lists(P, min_size=1, max_size=8))
def test_holm(p):
    result = paired.holm(np.array(p))
    assert_allclose(result, slow_holm(p))
    assert_allclose(paired.holm(np.array([p, p])).shape, (2, len(p)))


def test_holm_of_a_textbook():
    assert_allclose(paired.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


def slow_larger(values, level):
    """Every pair's difference over its size, against the largest of any pair under every pattern of signs."""
    count = len(values)
    apart = {(i, j): values[i] - values[j] for i in range(count) for j in range(count) if i != j}
    largest = [max((scaled(row, signs) for row in apart.values()), default=0) for signs in patterns(values.shape[1])]
    result = np.zeros((count, count), bool)
    for (i, j), row in apart.items():
        p = np.mean([m >= scaled(row, [1] * len(row)) - 1e-12 for m in largest])
        result[i, j] = row.sum() > 0 and p < 1 - level
    return result


@settings(max_examples=60)
@given(units(), st.sampled_from([0.5, 0.8, 0.9]))
def test_larger_holds_all_pairs_to_their_largest(values, level):
    result = paired.larger(values, level=level, **HOW)
    assert_array_equal(result, slow_larger(values, level))
    assert_array_equal(paired.larger(values + 5, level=level, **HOW), result)  # a shift of all is none of any pair
    first, last = paired.rank_bounds(result)
    for unit in range(len(values)):
        assert first[unit] == 1 + sum(result[other, unit] for other in range(len(values)))
        assert last[unit] == len(values) - sum(result[unit, other] for other in range(len(values)))
    by_mean = np.argsort(-values.sum(axis=1), kind="stable")
    ranks = np.empty(len(values), int)
    ranks[by_mean] = np.arange(1, len(values) + 1)
    assert ((first <= ranks) & (ranks <= last)).all()


def test_rank_bounds_hold_the_planted_ranks_as_often_as_they_say():
    rng, truth = np.random.default_rng(0), np.array([0.9, 0.5, 0.5, 0.1, 0.0])
    lowest = np.array([1, 2, 2, 4, 5])  # ties have both ranks
    highest = np.array([1, 3, 3, 4, 5])
    held, narrow = [], []
    for run in range(150):
        texts = rng.normal(0, 1, (1, 10)) + rng.normal(0, 0.3, (5, 10))  # what a text has in common cancels
        above = paired.larger(truth[:, None] + texts, level=0.9, draws=512, seed=run)
        first, last = paired.rank_bounds(above)
        held.append(((first <= lowest) & (highest <= last)).all())
        narrow.append(last - first)
    assert np.mean(held) > 0.9 - 3 * np.sqrt(0.09 / 150)
    assert np.mean(narrow) < 2.5  # and not by saying nothing


@given(st.integers(0, 999), st.integers(2, 9), st.integers(2, 6))
def test_welch_p_is_welchs_t_where_texts_differ_in_the_unit_alone(seed, texts, controls):
    rng = np.random.default_rng(seed)
    unit, means = rng.normal(0.5, 1, texts), rng.normal(0, 1, controls)
    result = paired.welch_p(unit - means.mean(), means)
    assert_allclose(result, stats.ttest_ind(unit, means, equal_var=False).pvalue)


def test_welch_p_without_spread():
    assert paired.welch_p(np.zeros(4), np.zeros(2)) == 1
    assert paired.welch_p(np.full(4, paired.TINY / 2), np.zeros(2)) == 1
    assert paired.welch_p(np.full(4, 0.3), np.zeros(2)) == 0
    assert np.isnan([paired.welch_p(np.ones(1), np.ones(2)), paired.welch_p(np.ones(3), np.ones(1))]).all()


def test_signs_begin_with_the_observed_and_hold_every_pattern_once():
    (signs,) = paired.sign_flips(5, 16, 0)
    assert (signs[0] == 1).all()
    assert len({tuple(row) for row in np.concatenate([signs, -signs]).tolist()}) == 32
    blocks = list(paired.sign_flips(40, 5000, 0))
    assert [len(block) for block in blocks] == [4096, 904]
    assert (blocks[0][0] == 1).all() and set(np.unique(blocks[1])) == {-1, 1}
