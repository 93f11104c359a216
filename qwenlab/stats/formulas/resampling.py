"""Intervals by resampling whole sequences, or folds of them: so what tokens of one text share is respected."""

from collections.abc import Callable

import numpy as np
from scipy import stats

_BLOCK = 256  # bootstrap draws at a time


def jackknife(estimate: np.ndarray, left_out: np.ndarray, held: np.ndarray, level: float) -> np.ndarray:
    """Student's interval around an estimate, its error from the delete-one-fold jackknife (Tukey 1958).

    estimate  [...]         the statistic of all folds
    left_out  [..., fold]   the statistic without that fold
    held      [..., fold]   bool: folds that hold anything; the others do not count
    returns   [..., 2]      low, high; NaN with fewer than two folds, or where leaving one out leaves nothing

    With m folds the squared error is (m - 1) / m times the sum of squared deviations of `left_out` from its mean.
    """
    folds = held.sum(axis=-1)
    enough = np.where(folds > 1, folds, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(held, left_out, 0).sum(axis=-1) / enough
        deviation = np.where(held, left_out - mean[..., None], 0)
        error = np.sqrt((enough - 1) / enough * (deviation**2).sum(axis=-1))
        reach = stats.t.ppf(0.5 + level / 2, enough - 1) * error
    return np.stack([estimate - reach, estimate + reach], axis=-1)


def fold_draws(folds: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each fold is in each bootstrap draw of as many folds, with replacement: int [draw, fold]."""
    return rng.multinomial(folds, np.full(folds, 1 / folds), size=draws)


def bootstrap(estimate: np.ndarray, drawn: np.ndarray, level: float) -> np.ndarray:
    """Interval from bootstrap draws [draw, ...], moved so that their mean lies on the estimate [...].

    returns [..., 2]: low, high. Moving takes out the bias of a statistic that resampling itself shifts (a fold drawn
    twice stands in for texts that would have been new).
    """
    spread = drawn - drawn.mean(axis=0)
    low, high = np.quantile(spread, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return np.stack([estimate + low, estimate + high], axis=-1)


def percentile_interval(
    sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray], *, level: float, resamples: int, seed: int
) -> np.ndarray:
    """Percentile bootstrap of a statistic of sums, whole clusters drawn with replacement (Efron 1979).

    sums     [cluster, column]  what each cluster adds
    of       [..., column] -> [..., value], of sums over clusters
    returns  [value, 2]         low, high, over the draws in which the value is defined; NaN with fewer than two
                                clusters, or where it never is

    The same seed draws the same clusters, whatever the values.
    """
    clusters = len(sums)
    if clusters < 2:
        return np.full((of(sums.sum(axis=0)).shape[-1], 2), np.nan)
    rng = np.random.default_rng(seed)
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.concatenate([of(fold_draws(clusters, block, rng) @ sums) for block in blocks])
    defined = [column[~np.isnan(column)] for column in drawn.T]
    ends = [0.5 - level / 2, 0.5 + level / 2]
    return np.stack([np.quantile(column, ends) if len(column) else np.full(2, np.nan) for column in defined])


def by_cluster(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Sums [cluster, column] of rows [row, column] by the cluster [row] they are of, in the order of its numbers."""
    _, index = np.unique(cluster, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    return np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
