"""Tests of differences paired by text: sign flips, corrections for many tests, confidence sets of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import stats

TINY = 1e-9
"""Differences up to this are rounding errors: equal scores, summed in another order."""

_BLOCK = 4096  # draws at a time
_SLACK = 1 - 1e-9  # sums that differ by rounding only count as equal


def sign_flips(texts: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of signs [draw, text], the first row all +1: all patterns if at most `draws`, else random ones.

    Patterns that differ in all signs give sums that differ only in sign, so the first text keeps its own.
    """
    if texts <= 31 and 2 ** (texts - 1) <= draws:
        bits = np.arange(2 ** (texts - 1))[:, None] >> np.arange(texts - 1) & 1
        yield np.concatenate([np.ones((len(bits), 1)), 1.0 - 2 * bits], axis=1)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _BLOCK):
        signs = 1.0 - 2 * rng.integers(0, 2, (min(_BLOCK, draws - start), texts))
        if start == 0:
            signs[0] = 1
        yield signs


def flip_p(difference: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Two-sided p-value [unit] of a sign-flip test of differences [unit, text].

    The share of sign patterns under which the sum is at least as far from 0 (Fisher 1935, The Design of Experiments,
    section 21): exact if all 2^(texts - 1) are enumerated; else over random ones including the observed one, so that
    p is never too small (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585). It is at least 2^(1 - texts).
    """
    values = _cut(difference)
    least = _SLACK * np.abs(values.sum(axis=1)) - TINY  # a sum of 0 is one only up to rounding
    hits, count = np.zeros(len(values)), 0
    for signs in sign_flips(values.shape[1], draws, seed):
        hits += (np.abs(signs @ values.T) >= least).sum(axis=0)
        count += len(signs)
    return hits / count


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values of any shape for their number (Holm 1979, Scand. J. Statist. 6:65); NaN is not counted.

    The i-th smallest of m is multiplied by m - i + 1, and adjusted values keep the order. Rejecting those up to alpha
    has a familywise error rate of at most alpha, under any dependence of the tests.
    """
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p.ravel()[known], kind="stable")]
    times = np.arange(len(order), 0, -1)
    out.ravel()[order] = np.minimum(1, np.maximum.accumulate(times * p.ravel()[order]))
    return out


def max_p(difference: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """As `flip_p`, corrected for the number of units by the maximum statistic: [unit]; 1 where all differences are 0.

    A unit's statistic is |sum| / root of the sum of squares; p is the share of sign patterns, flipped for all units at
    once, under which the largest statistic of any unit is at least that (Westfall and Young 1993: the single-step
    maximum). It takes the dependence of units into account; with few texts p can be as small as for `flip_p`, for any
    number of units.
    """
    values = _cut(difference)
    size = np.sqrt((values**2).sum(axis=1))
    scaled = values[size > 0] / size[size > 0, None]
    least = _SLACK * np.abs(scaled.sum(axis=1)) - TINY
    hits, count = np.zeros(len(scaled)), 0
    for signs in sign_flips(values.shape[1], draws, seed):
        most = np.abs(signs @ scaled.T).max(axis=1, initial=0)
        hits += len(most) - np.searchsorted(np.sort(most), least)
        count += len(signs)
    p = np.ones(len(values))
    p[size > 0] = hits / count
    return p


def larger(values: np.ndarray, *, level: float, draws: int, seed: int) -> np.ndarray:
    """Which of the units [unit, text] have a significantly larger mean than which: bool [unit, than unit].

    Simultaneous: with probability `level` no pair is called different, or ordered, wrongly. A pair's statistic is
    |sum of its differences| / root of the sum of their squares, compared with its maximum over all pairs when the signs
    of whole texts are flipped (Westfall and Young 1993, Resampling-Based Multiple Testing: the single-step maximum).
    Time and memory grow with the square of the number of units.
    """
    signs = np.concatenate(list(sign_flips(values.shape[1], draws, seed)))
    sums, units = signs @ values.T, len(values)
    statistic, most = np.zeros((units, units)), np.zeros(len(signs))
    for unit in range(units - 1):
        apart = _cut(values[unit] - values[unit + 1 :])
        size = np.sqrt((apart**2).sum(axis=1))
        some = size > 0
        statistic[unit, unit + 1 :][some] = apart.sum(axis=1)[some] / size[some]
        flipped = np.abs(sums[:, unit, None] - sums[:, unit + 1 :][:, some]) / size[some]
        most = np.maximum(most, flipped.max(axis=1, initial=0))
    statistic -= statistic.T
    at_least = len(most) - np.searchsorted(np.sort(most), _SLACK * np.abs(statistic))
    return (statistic > 0) & (at_least / len(most) < 1 - level)


def rank_bounds(above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last rank [unit] that each unit can have, 1 for the largest, from the result of `larger`.

    1 + the number of significantly larger units, and the number of units minus that of significantly smaller ones:
    simultaneous confidence sets of all ranks (Mogstad, Romano, Shaikh and Wilhelm 2024, Inference for Ranks, Rev. Econ.
    Stud. 91:476).
    """
    return 1 + above.sum(axis=0), len(above) - above.sum(axis=1)


def welch_p(beyond: np.ndarray, controls: np.ndarray) -> float:
    """Two-sided p-value that a unit and the population of its controls have the same mean; NaN below two of each.

    beyond    [text]     values of the unit minus the mean of its controls, text by text
    controls  [control]  means of the controls

    Welch's t (1947, Biometrika 34:28) with Satterthwaite's degrees of freedom, for two sources of error: texts, and the
    random choice of controls.
    """
    if len(beyond) < 2 or len(controls) < 2:
        return np.nan
    mean = _cut(beyond).mean()
    errors = np.array([_cut(beyond).var(ddof=1) / len(beyond), controls.var(ddof=1) / len(controls)])
    if not errors.sum() > TINY**2:
        return float(mean == 0)
    freedom = errors.sum() ** 2 / (errors**2 / [len(beyond) - 1, len(controls) - 1]).sum()
    return float(2 * stats.t.sf(np.abs(mean) / np.sqrt(errors.sum()), freedom))


def _cut(difference: np.ndarray) -> np.ndarray:
    """Set rounding errors to 0."""
    return np.where(np.abs(difference) > TINY, difference, 0.0)
