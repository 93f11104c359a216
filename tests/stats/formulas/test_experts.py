"""What load alone foretells, held to enumeration and to simulation."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose

from qwenlab.stats.formulas.experts import (
    distinct_if_independent,
    independent_pairs,
    repeated_if_independent,
    unused,
    variation,
)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 5))
def test_unused_is_exact_combinatorics(load, more):
    total = max([1, *load]) + more
    sizes = np.arange(1, total + 1)
    expected = [sum(comb(total - x, n) / comb(total, n) for x in load) for n in range(1, total + 1)]
    assert_allclose(unused(np.array(load), np.array(total), sizes), expected, atol=1e-10)


def test_unused_is_the_mean_over_all_subsets_of_tokens():
    chose = np.random.default_rng(0).random((7, 5)) < 0.3
    for n in range(1, 8):
        counted = [5 - chose[list(tokens)].any(axis=0).sum() for tokens in combinations(range(7), n)]
        assert_allclose(unused(chose.sum(axis=0), np.array(7), np.array([n]))[0], np.mean(counted))


def test_unused_beyond_the_tokens_read_is_nan():
    assert np.isnan(unused(np.array([1, 2]), np.array(3), np.array([4])))


def test_unused_of_many_tokens_stays_exact():
    result = unused(np.array([5]), np.array(10**7), np.array([10**6]))
    assert_allclose(result, 0.9**5, rtol=1e-5)


def test_distinct_and_repeated_agree_with_independent_tokens():
    rng = np.random.default_rng(1)
    share = np.array([0.9, 0.5, 0.3, 0.05, 0.0])
    chose = rng.random((40_000, 8, 5)) < share
    sizes = np.array([2, 4, 8])
    distinct = [chose[:, :n].any(axis=1).sum(axis=1).mean() for n in sizes]
    assert_allclose(distinct_if_independent(share, sizes), distinct, rtol=0.01)
    assert_allclose(repeated_if_independent(share), (chose[:, 0] & chose[:, 1]).sum(axis=1).mean(), rtol=0.01)


def test_variation_of_an_even_load_is_zero():
    assert_allclose(variation(np.array([[4, 4, 4], [0, 3, 6]])), [0, np.sqrt(6) / 3])


@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_independent_pairs_have_the_right_margins(top_k, seed):
    rng = np.random.default_rng(seed)
    experts = top_k + rng.integers(1, 12)
    chosen = rng.gumbel(size=(200, experts)) + rng.normal(0, 2, experts)
    load = np.bincount(np.argsort(-chosen)[:, :top_k].ravel(), minlength=experts)
    pairs = independent_pairs(load, top_k)
    assert_allclose(pairs.sum(axis=1), (top_k - 1) * load, atol=0.02 * 200 * top_k)
    assert_allclose(pairs, pairs.T)
    assert (np.diag(pairs) == 0).all()
    with np.errstate(invalid="ignore", divide="ignore"):  # rank one off the diagonal: ratios of rows are constant
        ratio = pairs[0, 2:] / pairs[1, 2:]
    assert np.nanmax(ratio, initial=0) <= np.nanmin(ratio, initial=np.inf) * (1 + 1e-6)


def test_independent_pairs_of_even_loads_are_all_alike():
    pairs = independent_pairs(np.full(6, 20), 3)  # 40 tokens
    assert_allclose(pairs[~np.eye(6, dtype=bool)], 40 * 3 * 2 / 30)


@pytest.mark.parametrize("load", [[0, 0, 0], [5, 5, 0]])
def test_independent_pairs_of_unused_experts_are_zero(load):
    assert (independent_pairs(np.array(load), 2)[2] == 0).all()
