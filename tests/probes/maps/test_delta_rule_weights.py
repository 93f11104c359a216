"""The unrolled delta rule matches a float64 loop for any split of the tokens, and known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from qwenlab.capture.prediction import normalised
from qwenlab.probes.maps.delta_rule_weights import DeltaRuleWeights


def by_hand(query, key, g, beta, past):
    """S <- exp(g) S; S <- S + k (b (e - S^T k))^T; row = S^T q, each token's value e a direction of its own.

    The rows of the tokens from `past` on, and what of their queries meets the state before those.
    """
    query, key, g, beta = (tensor.double().numpy() for tensor in (query, key, g, beta))
    batch, heads, length, channels = key.shape
    rows, met = np.zeros((batch, heads, length, length)), np.zeros((batch, heads, length, channels))
    for row, head in np.ndindex(batch, heads):
        state, onward = np.zeros((channels, length)), np.eye(channels)
        for token in range(length):
            k, decay = key[row, head, token], np.exp(g[row, head, token])
            state *= decay
            state += np.outer(k, beta[row, head, token] * (np.eye(length)[token] - state.T @ k))
            if token >= past:
                onward = decay * (np.eye(channels) - beta[row, head, token] * np.outer(k, k)) @ onward
            rows[row, head, token] = state.T @ query[row, head, token]
            met[row, head, token] = onward.T @ query[row, head, token]
    return rows[:, :, past:], met[:, :, past:]


def drawn(batch, heads, length, channels, seed):
    """Queries, keys of length 1, ln of decays from none to all, write strengths; [batch, head, token, ...]."""
    rng = np.random.default_rng(seed)
    query, key = (torch.tensor(rng.normal(size=(batch, heads, length, channels))).float() for _ in range(2))
    g = torch.tensor(-(10 ** rng.uniform(-4, 1, (batch, heads, length)))).float()
    return query, normalised(key), g, torch.tensor(rng.uniform(0, 1, (batch, heads, length))).float()


@settings(max_examples=30)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    length=st.sampled_from([1, 2, 63, 64, 65, 150]),
    past=st.integers(0, 149),
    seed=st.integers(0, 2**32 - 1),
    close=st.booleans(),
)
def test_rows_are_those_of_a_loop_over_tokens(batch, heads, length, past, seed, close):
    past = past % length
    query, key, g, beta = drawn(batch, heads, length, 6, seed)
    expected, met = by_hand(query, key, g, beta, past)
    column = torch.arange(past, length).expand(batch, -1)
    bounds = column[0].tolist() if close else [length] * (length - past)
    weight, entering = DeltaRuleWeights(key, beta, g, past).rows(query[:, :, past:], column, bounds)
    np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(entering, met, rtol=1e-5, atol=2e-5)


@settings(max_examples=20)
@given(length=st.integers(2, 140), rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_chosen_rows_are_rows_of_the_whole_map(length, rows, seed):
    """Each sequence may ask for other rows than its neighbour."""
    query, key, g, beta = drawn(2, 1, length, 5, seed)
    whole, _ = DeltaRuleWeights(key, beta, g, 0).rows(query, torch.arange(length).expand(2, -1), range(length))
    chosen = torch.randint(0, length, (2, rows), generator=torch.Generator().manual_seed(seed)).sort(dim=1).values
    rows = query.gather(2, chosen[:, None, :, None].expand(-1, 1, -1, 5))
    result, _ = DeltaRuleWeights(key, beta, g, 0).rows(rows, chosen, chosen.amax(dim=0).tolist())
    np.testing.assert_allclose(result, whole.gather(2, chosen[:, None, :, None].expand(-1, 1, -1, length)), atol=1e-6)


@settings(max_examples=20)
@given(length=st.integers(1, 90), seed=st.integers(0, 2**32 - 1))
def test_the_published_matrix_form_says_the_same(length, seed):
    """(Q K^T * D) (I + strict_lower(diag(b) K K^T * D))^-1 diag(b), over the whole text at once, in float64."""
    query, key, g, beta = drawn(1, 1, length, 4, seed)
    q, k, b, elapsed = (each[0, 0].double() for each in (query, key, beta, g.double().cumsum(dim=2)))
    decay = (elapsed[:, None] - elapsed[None]).tril().exp().tril()
    onto = (b[:, None] * (k @ k.T) * decay).tril(-1)
    closed = (q @ k.T * decay) @ torch.linalg.inv(torch.eye(length).double() + onto) @ b.diag()
    result, _ = DeltaRuleWeights(key, beta, g, 0).rows(query, torch.arange(length)[None], range(length))
    np.testing.assert_allclose(result[0, 0], closed, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(length=st.integers(1, 150), past=st.integers(0, 149), seed=st.integers(0, 2**32 - 1))
def test_without_the_removal_values_only_decay(length, past, seed):
    """beta_s k_s^T q_t exp(G_t - G_s), and of the query before the pass its decayed self."""
    past = past % length
    query, key, g, beta = drawn(1, 1, length, 4, seed)
    q, k, b, elapsed = (each[0, 0].double() for each in (query, key, beta, g.double().cumsum(dim=2)))
    decay = (elapsed[:, None] - elapsed[None]).tril().exp().tril()
    column = torch.arange(past, length)[None]
    rows = DeltaRuleWeights(key, beta, g, past).rows(query[:, :, past:], column, range(past, length), removal=False)
    np.testing.assert_allclose(rows[0][0, 0], ((q @ k.T * decay) * b)[past:], rtol=1e-5, atol=1e-5)
    since = elapsed[past:] - (elapsed[past - 1] if past else 0)
    np.testing.assert_allclose(rows[1][0, 0], q[past:] * since[:, None].exp(), rtol=1e-5, atol=1e-5)


def rows_of(key, g, beta, query):
    """The whole map of one head."""
    length = len(key)
    given_ = (torch.as_tensor(each, dtype=torch.float32)[None, None] for each in (query, key, beta, g))
    query, key, beta, g = given_
    return DeltaRuleWeights(key, beta, g, 0).rows(query, torch.arange(length)[None], range(length))[0][0, 0].numpy()


def test_a_key_that_comes_again_replaces_the_first_value():
    """alpha = beta = 1: of a repeated key the newest value is read, and nothing is left of the first."""
    key = np.eye(4)[[2, 1, 2, 0]]
    weight = rows_of(key, np.zeros(4), np.ones(4), key)
    np.testing.assert_allclose(weight, np.diag([1, 1, 1, 1]) + 0 * weight, atol=1e-7)
    rows = rows_of(key, np.zeros(4), np.ones(4), np.tile(np.eye(4)[2], (4, 1)))
    np.testing.assert_allclose(rows, [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]], atol=1e-7)


def test_what_half_of_a_write_leaves_of_the_first_value():
    """beta = 1/2, one key: 1/2 of each new value, 1/2 of what was there."""
    key, half = np.tile([1.0, 0.0], (4, 1)), np.full(4, 0.5)
    np.testing.assert_allclose(rows_of(key, np.zeros(4), half, key)[3], [1 / 16, 1 / 8, 1 / 4, 1 / 2], atol=1e-7)


@pytest.mark.parametrize("half_life", [1, 16, 100])
def test_orthogonal_keys_fade_with_the_decay_alone(half_life):
    """A constant alpha = 0.5^(1/half-life): a value is read with alpha^distance, half of it after the half-life."""
    length = 120
    g = np.full(length, np.log(0.5) / half_life)
    weight = rows_of(np.eye(length), g, np.ones(length), np.ones((length, length)))
    distance = np.arange(length)[:, None] - np.arange(length)
    np.testing.assert_allclose(weight, np.where(distance >= 0, 0.5 ** (distance.clip(0) / half_life), 0), atol=5e-6)


def test_weights_are_linear_in_the_query_and_know_no_values():
    query, key, g, beta = drawn(1, 1, 70, 5, 0)
    column = torch.arange(70)[None]
    one, twice = (DeltaRuleWeights(key, beta, g, 0).rows(factor * query, column, range(70))[0] for factor in (1, 2))
    np.testing.assert_allclose(twice, 2 * one, rtol=1e-6)


def test_a_decay_to_nothing_forgets_everything_before_it():
    """The decay of a token comes before its own write, which it does not reduce."""
    query, key, g, beta = drawn(1, 1, 80, 5, 1)
    g[..., 40] = -200.0
    weight, _ = DeltaRuleWeights(key, beta, g, 0).rows(query, torch.arange(80)[None], range(80))
    assert weight[..., 40:, :40].abs().max() == 0
    assert weight[0, 0, 40, 40].abs() > 0
