"""Collision of keys, held to all pairs."""

import numpy as np
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose

from qwenlab.stats.formulas.keys import collision


@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_collision_is_the_mean_squared_cosine_of_all_pairs_of_tokens(tokens, channels, seed):
    key = np.random.default_rng(seed).normal(size=(tokens, channels))
    key /= np.linalg.norm(key, axis=1, keepdims=True)
    pairs = [(key[i] @ key[j]) ** 2 for i in range(tokens) for j in range(tokens) if i != j]
    assert_allclose(collision(key.T @ key, np.array(tokens)), np.mean(pairs), atol=1e-12)


def test_keys_in_every_direction_collide_as_one_over_the_channels():
    key = np.random.default_rng(0).normal(size=(4000, 16))
    key /= np.linalg.norm(key, axis=1, keepdims=True)
    assert_allclose(collision(key.T @ key, np.array(4000)), 1 / 16, rtol=0.01)


def test_too_few_tokens_or_no_keys_are_nan():
    assert np.isnan(collision(np.eye(2), np.array(1)))
    assert np.isnan(collision(np.zeros((2, 2)), np.array(9)))
