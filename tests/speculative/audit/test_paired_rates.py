"""Paired rates: compared with Student's interval, and checked for coverage."""

import numpy as np
import pytest
from scipy import stats

from qwenlab.speculative.audit.paired_rates import MIN_TEXTS, PairedRates


def sums(*ways):
    """Sums [condition, text, column] of (count, total) pairs by text."""
    return np.array(ways, dtype=np.float64)


def test_rates_pool_all_texts():
    rates, _ = PairedRates(sums([(10, 5), (30, 3), (10, 1), (50, 50)])).rates(0.95)
    assert rates == pytest.approx(np.array([[0.59]]))


def test_the_interval_of_equally_long_texts_is_students():
    values = np.random.default_rng(0).uniform(0.3, 0.7, 5)
    _, interval = PairedRates(sums([(50, 50 * value) for value in values])).rates(0.9)
    low, high = stats.t.interval(0.9, 4, values.mean(), stats.sem(values))
    assert interval[0, 0] == pytest.approx([low, high])


def test_an_effect_of_a_text_on_all_conditions_is_not_an_error_of_their_difference():
    easy = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    both = PairedRates(sums([(100, 100 * e) for e in easy], [(100, 100 * e + 5) for e in easy]))
    _, alone = both.rates(0.95)
    effect, interval = both.effects(0.95)
    assert np.ptp(alone[1, 0]) > 0.5
    assert effect[1, 0] == pytest.approx(0.05)
    assert interval[1, 0] == pytest.approx([0.05, 0.05])
    assert (effect[0], interval[0].tolist()) == (0, [[0, 0]])


def test_rates_stay_within_0_and_1():
    _, interval = PairedRates(
        sums([(10, 10), (10, 10), (10, 9), (10, 10)], [(10, 0), (10, 0), (10, 1), (10, 0)])
    ).rates(0.99)
    assert interval[0, 0, 1] == 1 and interval[1, 0, 0] == 0


def test_texts_without_a_count_are_ignored():
    one = sums([(50, 20), (50, 30), (50, 10), (50, 25), (0, 0), (0, 0)])
    _, interval = PairedRates(one).rates(0.95)
    values = np.array([0.4, 0.6, 0.2, 0.5])
    reach = stats.t.ppf(0.975, 3) * stats.sem(values)
    assert np.ptp(interval[0, 0]) / 2 == pytest.approx(reach)


@pytest.mark.parametrize("texts", range(MIN_TEXTS))
def test_too_few_texts_have_no_interval(texts):
    many = [(10, 1)] * texts + [(0, 0)] * 4
    rates, interval = PairedRates(sums(many, [(10, 5)] * (texts + 4))).effects(0.95)
    assert np.isnan(interval[1]).all()
    assert np.isnan(rates[1]).all() == (texts == 0)


def test_an_unknown_column_stays_nan():
    rates, interval = PairedRates(np.array([[[10, 4, np.nan]] * 5])).rates(0.95)
    assert rates[0, 0] == 0.4 and np.isnan(rates[0, 1]) and np.isnan(interval[0, 1]).all()


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_difference_has_its_coverage(level):
    """Six texts of unequal lengths: percentiles would cover far less."""
    rng, covered = np.random.default_rng(4), []
    for _ in range(200):
        length = rng.integers(40, 120, 6)
        easy = rng.uniform(0.3, 0.6, 6)
        one, two = rng.binomial(length, easy), rng.binomial(length, easy + 0.1 + rng.normal(0, 0.05, 6))
        low, high = PairedRates(np.stack([np.stack([length, each], axis=1) for each in (one, two)])).effects(level)[1][
            1, 0
        ]
        covered.append(low <= 0.1 <= high)
    assert np.mean(covered) > level - 0.06
