"""Sums and histograms match plain loops, for any values, labels and padding."""

from dataclasses import replace

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


@pytest.mark.parametrize("labels", [1, 40])
def test_sums_in_blocks_of_tokens_equal_those_at_once(monkeypatch, labels):
    tokens, values = batch_of(labels, width=300)
    at_once, in_blocks = Sums(1), Sums(1)
    at_once.add(slice(0, 1), tokens, values=values[None])
    monkeypatch.setattr("qwenlab.probes.accumulators.MAX_SUMMED", 2048)
    in_blocks.add(slice(0, 1), tokens, values=values[None])
    np.testing.assert_allclose(in_blocks.array("values", labels), at_once.array("values", labels), rtol=1e-14)


def test_sums_hold_the_groups_of_present_labels_only():
    tokens, values = batch_of(100, width=64)
    row, group = torch.full_like(tokens.row, 1 + 70), torch.full_like(tokens.group, 1 + 70 * FOLDS + 3)
    of_one = replace(tokens, row=row, group=group, present=(70,), real=torch.ones_like(tokens.real))
    assert list(of_one.span) == list(range(1 + 70 * FOLDS, 1 + 71 * FOLDS))
    sums = Sums(1)
    sums.add(slice(0, 1), of_one, values=values[None].nan_to_num())
    array = sums.array("values", 100)
    assert array[70, 3, 0] == pytest.approx(float(values.nan_to_num().double().sum()))
    assert array.sum() == array[70, 3, 0]


def batch_of(labels, width):
    """One sequence whose tokens have random labels, all real, and a value of each."""
    rng = np.random.default_rng(labels)
    label = torch.as_tensor(rng.integers(0, labels, (1, width)))
    position, first = torch.arange(width)[None], torch.zeros(1, dtype=torch.long)
    real, group = torch.ones(1, width, dtype=torch.bool), 1 + label * FOLDS + 2
    present = tuple(range(labels))
    tokens = TokenBatch(real, position, 1 + label, group, first, range(1), None, 0, labels, present, {}, whole=True)
    return tokens, torch.as_tensor(rng.normal(size=(1, width)).astype(np.float32))
