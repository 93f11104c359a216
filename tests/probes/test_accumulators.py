"""Sums and histograms match plain loops, for any values, labels and padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from qwenlab.capture.tokens import FOLDS, TokenBatch
from qwenlab.probes.accumulators import Histogram, Sums


@st.composite
def batches(draw, labels):
    """Tokens with random labels, folds and padding; values [batch, position, *shape] with NaN at padding."""
    batch, width, shape = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.sampled_from([(), (3,), (2, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label, fold = rng.integers(0, labels, (batch, width)), rng.integers(0, FOLDS, (batch, 1))
    real = rng.random((batch, width)) < 0.7
    row = np.where(real, 1 + label, 0)
    group = np.where(real, 1 + label * FOLDS + fold, 0)
    real, row, group = (torch.as_tensor(a) for a in (real, row, group))
    position = torch.arange(width).expand(batch, -1)
    first = torch.zeros(batch, dtype=torch.long)
    tokens = TokenBatch(real, position, row, group, first, range(len(real)), None, 0, labels, tuple(range(labels)), {})
    values = rng.normal(0.5, 1, (batch, width, *shape)).astype(np.float32)
    values[~real.numpy()] = np.nan
    return tokens, torch.as_tensor(values)


@given(st.lists(st.integers(1, 4).flatmap(batches), min_size=1, max_size=4))
def test_sums(cases):
    shape = cases[0][1].shape[2:]
    cases = [(tokens, values) for tokens, values in cases if values.shape[2:] == shape]
    sums, expected = Sums(3), np.zeros((5, FOLDS, *shape))
    for tokens, values in cases:
        sums.add(slice(0, 2), tokens, ours=torch.stack([values, -values]), other=values.expand(2, *values.shape))
        sums.add(slice(1, 3), tokens, ours=torch.stack([values, 2 * values]), other=values.expand(2, *values.shape))
        for row, column in np.ndindex(tokens.batch, tokens.width):
            if group := int(tokens.group[row, column]):
                expected[(group - 1) // FOLDS, (group - 1) % FOLDS] += values[row, column].numpy().astype(float)
    result = np.moveaxis(sums.array("ours", 5, *shape), 2, 0)
    for layer, times in zip(result, (1, 0, 2), strict=True):
        np.testing.assert_allclose(layer, times * expected, rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(1, 4).flatmap(batches), min_size=1, max_size=4))
def test_histograms(cases):
    shape, bins = cases[0][1].shape[2:], 6
    cases = [(tokens, values) for tokens, values in cases if values.shape[2:] == shape]
    histogram, expected = Histogram(3, bins), np.zeros((5, *shape, bins), int)
    for tokens, values in cases:
        histogram.add(slice(0, 2), tokens, (values * bins).expand(2, *values.shape))
        histogram.add(slice(1, 3), tokens, (values * bins).expand(2, *values.shape))
        for row, column in np.ndindex(tokens.batch, tokens.width):
            for place in np.ndindex(*shape):
                if label := int(tokens.row[row, column]):
                    value = float(values[(row, column, *place)] * bins)
                    expected[(label - 1, *place, min(max(int(np.floor(value)), 0), bins - 1))] += 1
    for layer, times in zip(np.moveaxis(histogram.array(5, *shape), 1, 0), (1, 2, 1), strict=True):
        np.testing.assert_array_equal(layer, times * expected)


def whole(values):
    """Real tokens of one label, for values [batch, position]."""
    ones = torch.ones(values.shape, dtype=torch.long)
    return TokenBatch(ones.bool(), ones, ones, ones, ones[:, 0], range(len(ones)), None, 0, 1, (0,), {}, whole=True)


def test_what_lies_beyond_the_bins_goes_to_the_ends_and_nan_nowhere():
    values = torch.tensor([[-3.0, -float("inf"), 0.0, 5.999, 6.0, float("inf"), float("nan")]])
    histogram = Histogram(1, 6)
    histogram.add(slice(0, 1), whole(values), values[None])
    assert histogram.array(1).tolist() == [[[3, 0, 0, 0, 0, 3]]]


def test_sums_do_not_lose_small_values_beside_large_ones():
    sums, values = Sums(1), torch.full((1, 10), 1e-6)
    sums.add(slice(0, 1), whole(values), ours=torch.full((1, 1, 10), 1e8))
    for _ in range(10):
        sums.add(slice(0, 1), whole(values), ours=values[None])
    assert sums.array("ours", 1)[0, 0, 0] - 1e9 == pytest.approx(1e-4, rel=1e-2)


def test_a_tally_without_a_token_is_zero():
    assert Sums(5).array("ours", 2, 3).tolist() == np.zeros((2, FOLDS, 5, 3)).tolist()
    assert Histogram(5, 4).array(2, 3).tolist() == np.zeros((2, 5, 3, 4), int).tolist()
