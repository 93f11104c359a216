"""Rates of several ways to run the same texts, and their differences: intervals over whole texts, paired by text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST = 4
"""Texts without which no interval is given."""

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PairedRates:
    """Sums [way, text, column] of several ways to run the same texts: column 0 is a count, the others are sums over it.

    An interval is Student's over texts, with the bootstrap's standard error times sqrt(n / (n - 1)), n the texts that
    count anything: the percentiles of so few are too narrow (Hesterberg 2015, arXiv:1411.5279). NaN below `FEWEST`. All
    ways are resampled alike, so that what a text does to all of them is no part of the error of a difference.
    """

    sums: np.ndarray
    seed: int = 0

    def rates(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates [way, column - 1], within 0 and 1, and their intervals [..., 2]; NaN where nothing was counted."""
        rates, interval = self._estimated(lambda rates: rates, self.sums[..., 0] > 0, level)
        return rates, interval.clip(0, 1)

    def effects(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates less those of the first way, [way, column - 1], and their intervals [way, column - 1, 2]."""
        counted = self.sums[..., 0] > 0
        return self._estimated(lambda rates: rates - rates[..., :1, :], counted & counted[:1], level)

    def _estimated(
        self, of: Callable[[np.ndarray], np.ndarray], counted: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        texts = self.sums.shape[1]
        draws = np.random.default_rng(self.seed).multinomial(texts, np.full(texts, 1 / texts), size=_RESAMPLES)
        drawn = of(_rates(np.einsum("dt,wtc->dwc", draws, self.sums)))
        estimate = of(_rates(self.sums.sum(axis=1)))
        deviation = np.where(np.isnan(drawn), 0, drawn - estimate)
        error = np.sqrt((deviation**2).sum(axis=0) / np.maximum((~np.isnan(drawn)).sum(axis=0), 1))
        n = counted.sum(axis=1)[:, None]
        n = np.where(n < FEWEST, np.nan, n)
        reach = stats.t.ppf(0.5 + level / 2, n - 1) * error * np.sqrt(n / (n - 1))
        return estimate, np.stack([estimate - reach, estimate + reach], axis=-1)


def _rates(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 1:] / sums[..., :1]
