"""Experts a block touches: by loops over blocks, and beside what unrelated tokens would touch."""

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
    told = stats.expert_union(chosen, widths=widths)
    for width in widths:
        blocks = [range(t, t + width) for t in range(len(text) - width + 1) if text[t] == text[t + width - 1]]
        assert int(told["blocks"].sel(width=width)) == len(blocks)
        for layer in range(chosen.sizes["layer"]):
            many = [len({int(e) for t in block for e in chosen[t, layer]}) for block in blocks]
            assert_allclose(told["distinct"].sel(width=width, layer=layer), np.mean(many))
    assert_allclose(told["experts_touched"], told["distinct"].mean("layer"))
    assert_allclose(told["experts_touched"].sel(width=1), chosen.sizes["slot"])


def test_unrelated_tokens_touch_as_many_as_foretold_and_alike_ones_fewer():
    rng = np.random.default_rng(0)
    unrelated = rng.random((4000, 1, 32)).argsort(axis=-1)[..., :4]
    told = stats.expert_union(unrelated, widths=[1, 4, 9])
    assert_allclose(told["distinct"], told["independent"], rtol=0.01)
    alike = np.repeat(unrelated[::4], 4, axis=0)
    told = stats.expert_union(alike, widths=[4])
    assert float(told["distinct"].item()) < 0.6 * float(told["independent"].item())


def test_it_is_what_costs_take():
    told = stats.expert_union(np.zeros((9, 1, 1), int), widths=[1, 2, 3])
    assert told["experts_touched"].dims == ("width",)
    assert told["experts_touched"].attrs["units"] == "expert"
    assert told["width"].values.tolist() == [1, 2, 3]


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
def test_what_cannot_be_counted_is_named(chosen, options, error, message):
    with pytest.raises(error, match=message):
        stats.expert_union(chosen, **options)
