"""The block of random levels: the same on every machine, read at a place that depends on a name."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qwenlab.checkpoint.random_weights.block import _LENGTH, LEVELS, RandomBlock


@pytest.fixture(scope="module")
def block():
    return RandomBlock(0)


def read(block, name, count, piece=2**20):
    return np.concatenate(list(block.read(name, count, piece)))


def test_levels_are_those_of_every_machine(block):
    assert read(block, "model.norm.weight", 3).tolist() == [43757, 6225, 47236]
    assert read(RandomBlock(1), "model.norm.weight", 3).tolist() == [40171, 8591, 31387]


@settings(max_examples=20)
@given(count=st.integers(1, 5000), piece=st.integers(1, 2000))
def test_pieces_do_not_matter(block, count, piece):
    assert np.array_equal(read(block, "a", count, piece), read(block, "a", 5000)[:count])


def test_the_block_begins_again_at_its_end(block):
    whole = read(block, "a", _LENGTH + 1000)
    assert len(whole) == _LENGTH + 1000
    assert np.array_equal(whole[:1000], whole[_LENGTH:])
    assert not np.array_equal(whole[:1000], read(block, "b", 1000))


def test_levels_are_uniform(block):
    counts = np.bincount(read(block, "a", _LENGTH), minlength=LEVELS)
    expected = _LENGTH / LEVELS
    assert np.all(np.abs(counts - expected) < 6 * expected**0.5)


def test_no_row_repeats_before_the_block_has_been_read_once_per_column():
    assert all(_LENGTH % divisor for divisor in range(2, int(_LENGTH**0.5) + 1))
