"""The formulas of acceptance, held to loops and to what is known of them."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab.stats.formulas.acceptance import break_even, chain, rates, tally


def test_tally_of_two_rounds():
    rows = tally(*(np.array(each) for each in ([2, 0], [2, 0], [1, 0], [1, -1], [2, 1])), depth=2)
    assert_array_equal(rows[0], [1, 1, 1, 1, 1, 0, 1, 0, 2, 1, 1, 2, 1, 1])
    assert_array_equal(rows[1], [0, 0, 0, 0, 0, 0, np.nan, np.nan, 0, 0, np.nan, 1, 1, 0])


def test_rates_of_nothing_are_not_numbers():
    assert np.isnan(rates(np.zeros((3, 14)), 2)).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_chain_by_loops(counts):
    accepted, tested = (np.array(each, float) for each in zip(*counts, strict=True))
    result = chain(np.concatenate([tested, accepted]))
    for depth in range(1, len(counts) + 1):
        length = 1.0
        for last in range(1, depth + 1):
            product = 1.0
            for place in range(last):
                product *= accepted[place] / tested[place]
            length += product
        assert_allclose(result[depth - 1], length)


def test_chain_ends_where_nothing_was_tested():
    assert_array_equal(np.isnan(chain(np.array([5.0, 0, 3, 4, 0, 2]))), [False, True, True])


@given(st.floats(0, 1), st.integers(1, 8))
def test_break_even_undoes_the_length_of_a_constant_rate(rate, depth):
    length = sum(rate**i for i in range(depth + 1))
    assert_allclose(break_even(length, depth), rate, atol=1e-6)


@pytest.mark.parametrize(("length", "depth", "rate"), [(0.8, 3, 0.0), (1.0, 3, 0.0), (4.0, 3, 1.0), (1.4, 1, 0.4)])
def test_break_even_at_its_ends(length, depth, rate):
    assert_allclose(break_even(length, depth), rate, atol=1e-9)


@pytest.mark.parametrize("length", [4.01, np.nan])
def test_impossible_break_even_is_nan(length):
    assert np.isnan(break_even(length, 3))
