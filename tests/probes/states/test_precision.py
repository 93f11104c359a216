"""States in low precision: the replay matches a float64 loop, and a decode that stores its states rounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab.capture.rounding import FORMATS, rounded
from qwenlab.errors import BadArgument
from qwenlab.interventions import StateDtype, intervene
from qwenlab.probes import StatePrecision
from tests.probes.by_hand import layers_of
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, padded, recorded

EPS = {"bfloat16": 2.0**-8, "float8_e4m3": 2.0**-4}
"""The largest relative error of rounding a normal number."""


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-6, 1e6))
def test_each_element_is_the_nearest_that_the_format_has(seed, size):
    state = size * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed))
    largest = state.abs().amax(dim=(1, 2), keepdim=True)
    for name, eps in EPS.items():
        smallest = 0 if name == "bfloat16" else 2**-10 / 448 * largest  # half a step of the subnormal numbers
        assert ((rounded(state, name) - state).abs() <= torch.maximum(eps * state.abs(), smallest + 0 * state)).all()
    assert ((rounded(state, "int8") - state).abs() <= largest / 127 * 0.5001).all()
    for name in FORMATS[1:]:
        assert_allclose(rounded(state, name).abs().amax(dim=(1, 2)), largest.flatten(), rtol=1e-5)
    for name in FORMATS:
        assert_allclose(rounded(rounded(state, name), name), rounded(state, name), rtol=1e-5)
        assert rounded(torch.zeros(3, 3), name).abs().sum() == 0


def by_hand(mixer, after, format):
    """Errors [token, head] of a state that is rounded after every `after` tokens, by a loop in float64."""
    tokens, heads = mixer["beta"].shape
    group = heads // mixer["key"].shape[1]
    errors = np.zeros((tokens, heads))
    for h in range(heads):
        state = np.zeros(mixer["state"].shape[2:])
        for t in range(tokens):
            key = mixer["key"][t, h // group]
            state = np.exp(mixer["g"][t, h]) * state
            state = state + np.outer(key, mixer["beta"][t, h] * (mixer["value"][t, h] - state.T @ key))
            if (t + 1) % after == 0:
                state = rounded(torch.tensor(state), format).double().numpy()
            true = mixer["state"][t, h]
            errors[t, h] = np.linalg.norm(state - true) / np.linalg.norm(true)
    return errors


@pytest.fixture(scope="module")
def read(model, text):
    """A text, and what a float64 loop finds in each layer."""
    tokens = text(33)
    return tokens, layers_of(model, tokens)


@pytest.mark.parametrize("after", [1, 8])
def test_errors_are_those_of_a_loop_over_tokens(model, read, after):
    tokens, layers = read
    probe = StatePrecision(every=1, after=after)
    result = recorded(model, lambda model, seen: model(tokens[None], use_cache=True), probe)["state_precision"]
    place = np.array([0, *(1 + int(np.log2(t)) for t in range(1, 33))])
    for index, layer in enumerate(result["layer"].values):
        mixer = layers[layer].mixer
        for format in FORMATS:
            errors = by_hand(mixer, after, format)
            error = result["error_sum"].sel(format=format)[0, 0, index]
            expected = np.stack([errors[place == b].sum(axis=0) for b in range(22)], axis=-1)
            # One element that rounds the other way, of 256, is a few per cent of an error.
            assert_allclose(error, expected, rtol=0.1, atol=1e-6)
            assert_allclose(error.sum(), expected.sum(), rtol=0.02)
    assert result.attrs["state_gap"] < 1e-5
    assert result["tokens"].sum() == 33 * 3


POOL = torch.randint(1, 280, (4, 30), generator=torch.Generator().manual_seed(3))


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    after=st.sampled_from([1, 4]),
)
def test_any_pieces_of_any_batch_say_what_the_whole_says(small, lengths, widths, after):
    """Not to the last digit: what is a tie in one feed may round the other way in another.

    Before the first rounding the error is 0, or the float32 noise of a state that came through the cache.
    """
    texts = [POOL[row, :length] for row, length in enumerate(lengths)]
    probes = [StatePrecision(every=1, after=after) for _ in range(3)]
    whole = recorded(small, one_by_one(texts), probes[0])
    assert_same(recorded(small, in_pieces(texts, widths), probes[1]), whole, rtol=0.05, least=1e-5)
    assert_same(recorded(small, padded(texts, "right"), probes[2]), whole, rtol=0.05, least=1e-5)


def test_coarser_formats_stray_further(moe, text):
    result = recorded(moe, one_by_one([text(200)]), StatePrecision())["state_precision"]["error_sum"]
    by_format = result.sum(["label", "fold", "head", "position_bin"])
    assert (by_format.sel(format="bfloat16") < by_format.sel(format="int8")).all()
    assert (by_format.sel(format="bfloat16") < by_format.sel(format="float8_e4m3")).all()


@torch.no_grad()
def decoded(model, tokens, prefill=1):
    """Logits of every token, fed one by one after a prefill; and the last cache."""
    out = model(tokens[None, :prefill], use_cache=True)
    logits = [out.logits]
    for token in tokens[prefill:]:
        out = model(token[None, None], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1), out.past_key_values


@pytest.mark.parametrize("format", FORMATS)
def test_a_decode_keeps_its_states_rounded(model, text, format):
    tokens = text(12)
    plain, _ = decoded(model, tokens, prefill=4)
    with intervene(model, StateDtype(format)):
        logits, cache = decoded(model, tokens, prefill=4)
    for layer in (0, 1, 2):
        (state,) = cache.layers[layer].recurrent_states.values()
        assert_allclose(rounded(state, format), state, rtol=1e-5, atol=1e-7)
    assert torch.equal(logits[:, :4], plain[:, :4])  # a pass is changed by what earlier ones left
    assert not torch.equal(logits[:, 4:], plain[:, 4:])
    again, _ = decoded(model, tokens, prefill=4)
    assert torch.equal(again, plain)  # nothing is left behind


def test_a_decode_that_rounds_strays_as_the_replay_says(small, text):
    """The first DeltaNet layer, whose inputs are not changed: its own state against the replay's."""
    tokens = text(20)
    result = recorded(small, one_by_one([tokens]), StatePrecision(every=1, formats=["int8"]))["state_precision"]
    _, plain = decoded(small, tokens)
    with intervene(small, StateDtype("int8")):
        _, low = decoded(small, tokens)
    one, other = (next(iter(cache.layers[0].recurrent_states.values()))[0] for cache in (plain, low))
    strayed = (other - one).norm(dim=(1, 2)) / one.norm(dim=(1, 2))
    last = by_hand(layers_of(small, tokens)[0].mixer, 1, "int8")[-1]
    assert_allclose(strayed, last, rtol=0.1)
    assert result["error_sum"].sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(formats=["fp4"]),
            r"^StatePrecision\(formats='fp4'\): give one of 'bfloat16', 'float8_e4m3', 'int8'\.",
        ),
        (dict(formats=[]), r"^StatePrecision\(formats=\(\)\): give at least one format\.$"),
        (dict(after=0), r"^StatePrecision\(after=0\): give an integer number of tokens, 1 or more\.$"),
    ],
)
def test_arguments_that_are_none(options, message):
    with pytest.raises(BadArgument, match=message):
        StatePrecision(**options)
