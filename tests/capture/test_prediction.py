"""Predictions of a state match a float64 loop for any split of the tokens, and the state matches the kernel's."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from qwenlab.capture.prediction import normalised, predictions
from qwenlab.errors import KernelMismatch
from qwenlab.probes import DeltaNet
from qwenlab.probes.session import watch
from tests.probes.feeding import recorded


def drawn(batch, length, heads, channels, width, seed):
    """Keys of length 1, values, ln of decays from none to all, write strengths; float32."""
    rng = np.random.default_rng(seed)
    key, value = rng.normal(size=(batch, length, heads, channels)), rng.normal(size=(batch, length, heads, width))
    g, beta = -(10 ** rng.uniform(-4, 1.5, (batch, length, heads))), rng.uniform(0, 1, (batch, length, heads))
    return [normalised(torch.tensor(key)), *(torch.tensor(each, dtype=torch.float32) for each in (value, g, beta))]


def by_hand(key, value, g, beta):
    """S <- exp(g) S; p = S^T k; S <- S + k (beta (v - p))^T, token by token."""
    key, value, g, beta = (tensor.double().numpy() for tensor in (key, value, g, beta))
    batch, length, heads, channels = key.shape
    state, out = np.zeros((batch, heads, channels, value.shape[-1])), np.zeros(value.shape)
    for row, token, head in np.ndindex(batch, length, heads):
        s, k = state[row, head], key[row, token, head]
        s *= np.exp(g[row, token, head])
        out[row, token, head] = s.T @ k
        s += np.outer(k, beta[row, token, head] * (value[row, token, head] - out[row, token, head]))
    return out, state


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(np.asarray(other)).max())


@settings(max_examples=30)
@given(
    batch=st.integers(1, 2),
    length=st.sampled_from([1, 2, 63, 64, 65, 150]),
    heads=st.integers(1, 3),
    cut=st.integers(0, 150),
    seed=st.integers(0, 2**32 - 1),
)
@example(batch=2, length=65, heads=1, cut=1, seed=176952)
def test_any_split_says_what_a_loop_over_tokens_says(batch, length, heads, cut, seed):
    given_all = drawn(batch, length, heads, 8, 5, seed)
    expected, last = by_hand(*given_all)
    predicted, state = predictions(*given_all, None)
    # The keys of 65 tokens in 8 channels collide: errors of float32 are relative to the largest entry.
    assert_close(predicted, expected)
    assert_close(state, last)
    if 0 < cut < length:
        first, between = predictions(*(tensor[:, :cut] for tensor in given_all), None)
        second, end = predictions(*(tensor[:, cut:] for tensor in given_all), between)
        assert_close(torch.cat([first, second], dim=1), predicted)
        assert_close(end, state)


def test_a_key_that_comes_again_finds_the_newest_value():
    """alpha = beta = 1: the second write replaces the first."""
    key = torch.zeros(1, 3, 1, 4)
    key[..., 2] = 1
    value = torch.tensor([1.0, 5.0, 0.0]).reshape(1, 3, 1, 1)
    zeros, ones = torch.zeros(1, 3, 1), torch.ones(1, 3, 1)
    predicted, state = predictions(key, value, zeros, ones, None)
    assert predicted.flatten().tolist() == [0, 1, 5]
    assert state.abs().sum() == 0


def test_the_state_is_the_kernels(small, text):
    gap = recorded(small, lambda model, seen: model(text(150)[None], use_cache=True))["deltanet"].attrs["state_gap"]
    assert 0 <= gap < 1e-5


def test_a_kernel_of_another_convention_is_an_error(small, text, monkeypatch):
    import sys

    modeling = sys.modules[type(small).__module__]
    original = modeling.torch_chunk_gated_delta_rule

    def in_bits(*args, g, **kwargs):
        """As if g were a logarithm to base 2."""
        return original(*args, g=g * 0.6931, **kwargs)

    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", in_bits)
    message = (
        r"^DeltaNet\(\) recomputes the state, and its result differs from the kernel's: by [0-9.]+ % of the norm in "
        r"layer 0 \(rounding explains at most 5 %\), and in 1 of 1 layers.\nThe kernel in use follows another"
    )
    with pytest.raises(KernelMismatch, match=message), watch(small, DeltaNet(prediction_heads="all")):
        small(text(40)[None], use_cache=True)
    with watch(small, DeltaNet()):
        small(text(40)[None], use_cache=True)
