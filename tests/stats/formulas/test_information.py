"""Entropy and mutual information, held to their definitions written as loops."""

from itertools import permutations
from math import log

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from qwenlab.stats.formulas.information import (
    entropy,
    independent_information,
    mutual_information,
    permuted_information,
)

tables = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 9)).filter(
    lambda table: table.sum() > 0
)


def slow_information(table):
    total, result = table.sum(), 0.0
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            if count:
                result += count / total * log(count * total / (table[i].sum() * table[:, j].sum()))
    return result


@given(tables)
def test_mutual_information_is_its_definition(table):
    assert_allclose(mutual_information(table), slow_information(table), atol=1e-12)


@given(tables)
def test_entropy_is_its_definition(table):
    p = table.sum(axis=0) / table.sum()
    assert_allclose(entropy(table.sum(axis=0)), -sum(x * log(x) for x in p if x), atol=1e-12)


def test_entropy_of_nothing_is_nan():
    assert np.isnan(entropy(np.zeros(3)))


def test_independent_information_agrees_with_shuffled_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 150), rng.integers(0, 9, 150) % 7
    table = np.zeros((8, 7), np.int64)
    np.add.at(table, (a, b), 1)
    shuffled = []
    for _ in range(2000):
        other = np.zeros_like(table)
        np.add.at(other, (a, rng.permutation(b)), 1)
        shuffled.append(slow_information(other) if len(shuffled) < 50 else mutual_information(other))
    result = independent_information(table, 2000, rng)
    assert_allclose(result.mean(), np.mean(shuffled), rtol=0.03)
    assert_allclose(result.std(), np.std(shuffled), rtol=0.1)


def test_independent_information_of_one_row_is_none():
    assert_allclose(independent_information(np.array([[3, 4, 0]]), 5, np.random.default_rng(0)), 0)


def test_permuted_information_moves_whole_blocks():
    rng = np.random.default_rng(1)
    blocks, label = rng.integers(0, 9, (4, 3)), np.array([0, 0, 1, 2])
    orders = np.array(list(permutations(range(4))))
    expected = []
    for order in orders:
        table = np.zeros((3, 3))
        for block, place in enumerate(order):
            table[label[place]] += blocks[block]
        expected.append(slow_information(table))
    assert_allclose(permuted_information(blocks, label, 3, orders), expected, atol=1e-12)
