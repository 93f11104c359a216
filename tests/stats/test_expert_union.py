"""Experts that a block touches agree with loops over blocks, and with the expectation for unrelated tokens."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import BadArgument, NothingMeasured


@st.composite
def choices(draw):
    """Different experts for the slots of each token, in texts of any length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, layers, experts = draw(st.integers(4, 20)), draw(st.integers(1, 3)), draw(st.integers(2, 6))
    slots = draw(st.integers(1, experts))
    chosen = rng.random((tokens, layers, experts)).argsort(axis=-1)[..., :slots]
    text = np.sort(rng.integers(0, 3, tokens))
    return xr.DataArray(chosen, {"text": ("token", text)}, ("token", "layer", "slot"))


@settings(max_examples=30)
@given(choices())
def test_by_loops(chosen):
    text = chosen["text"].values
    longest = max(np.bincount(text))
    widths = [n for n in (1, 2, 3) if n <= longest]
    result = stats.expert_union(chosen, widths=widths)
    for width in widths:
        blocks = [range(t, t + width) for t in range(len(text) - width + 1) if text[t] == text[t + width - 1]]
        assert int(result["blocks"].sel(width=width)) == len(blocks)
        for layer in range(chosen.sizes["layer"]):
            many = [len({int(e) for t in block for e in chosen[t, layer]}) for block in blocks]
            assert_allclose(result["distinct"].sel(width=width, layer=layer), np.mean(many))
    assert_allclose(result["experts_touched"], result["distinct"].mean("layer"))
    assert_allclose(result["experts_touched"].sel(width=1), chosen.sizes["slot"])


def test_unrelated_tokens_touch_the_expected_number_and_similar_ones_fewer():
    rng = np.random.default_rng(0)
    unrelated = rng.random((4000, 1, 32)).argsort(axis=-1)[..., :4]
    result = stats.expert_union(unrelated, widths=[1, 4, 9])
    assert_allclose(result["distinct"], result["independent"], rtol=0.01)
    alike = np.repeat(unrelated[::4], 4, axis=0)
    result = stats.expert_union(alike, widths=[4])
    assert float(result["distinct"].item()) < 0.6 * float(result["independent"].item())


def test_costs_accept_it():
    result = stats.expert_union(np.zeros((9, 1, 1), int), widths=[1, 2, 3])
    assert result["experts_touched"].dims == ("width",)
    assert result["experts_touched"].attrs["units"] == "expert"
    assert result["width"].values.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("chosen", "options", "error", "message"),
    [
        (np.zeros((5, 2), int), {}, BadArgument, r"(?s)choices is int64 \[5, 2\].*int \[token, layer, slot\]"),
        (np.zeros((5, 2, 1)), {}, BadArgument, "choices is float64"),
        (np.full((5, 2, 1), -1), {}, BadArgument, "choices is int64"),
        (np.zeros((0, 2, 1), int), {}, BadArgument, "choices is int64"),
        (np.zeros((5, 2, 1), int), {"widths": [0]}, BadArgument, r"widths=\[0\]: give the numbers of tokens per block"),
        (np.zeros((5, 2, 1), int), {"widths": [2, 6]}, NothingMeasured, "No text has 6 tokens, the size of a block"),
    ],
)
def test_invalid_choices_are_errors(chosen, options, error, message):
    with pytest.raises(error, match=message):
        stats.expert_union(chosen, **options)
