"""Intervals by resampling folds: folds are sets of whole sequences, so what tokens of one text share is respected."""

import numpy as np
from scipy import stats


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
