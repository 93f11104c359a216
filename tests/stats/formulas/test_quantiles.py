"""Quantiles from histograms, held to quantiles of the samples themselves."""

import numpy as np
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab.stats.formulas.quantiles import integer_quantiles, linear_quantiles, log2_quantiles, shares

Q = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
UNIT = np.linspace(0, 1, 129)
OCTAVES = np.exp2(np.linspace(-6, 26, 161))
DISTANCES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32])

samples = st.lists(st.floats(0, 0.999), min_size=1, max_size=60).map(np.array)


@given(samples)
def test_linear_is_within_one_bin_of_the_sample_quantile(values):
    counts, _ = np.histogram(values, UNIT)
    truth = np.quantile(values, Q, method="inverted_cdf")
    assert np.abs(linear_quantiles(counts, UNIT, Q) - truth).max() <= 1 / 128


@given(samples)
def test_log2_is_within_one_bin_of_the_sample_quantile(values):
    lives = np.exp2(-6 + 32 * values)
    counts, _ = np.histogram(lives, OCTAVES)
    truth = np.quantile(lives, Q, method="inverted_cdf")
    assert np.abs(np.log2(log2_quantiles(counts, OCTAVES, Q) / truth)).max() <= 1 / 5 + 1e-9


@given(st.lists(st.integers(0, 31), min_size=1, max_size=60).map(np.array))
def test_whole_is_exact_up_to_four_and_in_the_bin_beyond(values):
    counts, _ = np.histogram(values, DISTANCES)
    truth = np.quantile(values, Q, method="inverted_cdf")
    result = integer_quantiles(counts, DISTANCES, Q)
    assert_array_equal(np.searchsorted(DISTANCES, result, "right"), np.searchsorted(DISTANCES, truth, "right"))
    assert_array_equal(result[truth < 4], truth[truth < 4])


def test_many_samples_evenly_spread_are_interpolated_within_the_bin():
    counts, _ = np.histogram(np.linspace(0, 1, 100_001)[:-1], np.array([0, 0.5, 1]))
    assert_allclose(linear_quantiles(counts, np.array([0, 0.5, 1]), Q), Q, atol=1e-4)


def test_leading_axes_are_kept_and_empty_histograms_are_nan():
    counts = np.array([[[0, 4, 0], [0, 0, 0]]])
    edges = np.array([0.0, 1, 2, 3])
    result = linear_quantiles(counts, edges, np.array([0.5, 0.75]))
    assert_allclose(result, [[[1.5, 1.75], [np.nan, np.nan]]])
    assert_allclose(shares(counts), [[[0, 1, 0], [np.nan] * 3]])
