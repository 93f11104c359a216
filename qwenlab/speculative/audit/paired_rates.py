"""Rates of several ways to run the same texts, and their differences, with intervals paired by text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwenlab.stats.formulas.intervals import jackknife

FEWEST = 4
"""Texts below which no interval is given."""


@dataclass(frozen=True, eq=False)
class PairedRates:
    """Sums [way, text, column] of several ways to run the same texts: column 0 is a count, the others are sums over it.

    Intervals are `stats.formulas.intervals.jackknife` over the texts that count anything; NaN below `FEWEST`. Each text
    is left out of all ways at once, so what it has in common to all of them is not part of the error of a difference.
    """

    sums: np.ndarray

    def rates(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates [way, column - 1], within 0 and 1, and their intervals [..., 2]; NaN where nothing was counted."""
        rates, interval = self._estimated(lambda rates: rates, self.sums[..., 0] > 0, level)
        return rates, interval.clip(0, 1)

    def effects(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates less those of the first way, [way, column - 1], and their intervals [way, column - 1, 2]."""
        counted = self.sums[..., 0] > 0
        return self._estimated(lambda rates: rates - rates[:1], counted & counted[:1], level)

    def _estimated(
        self, of: Callable[[np.ndarray], np.ndarray], counted: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        total = self.sums.sum(axis=1)
        estimate = of(_rates(total))
        left_out = [of(_rates(total - self.sums[:, text])) for text in range(self.sums.shape[1])]
        enough = counted & (counted.sum(axis=1, keepdims=True) >= FEWEST)
        shape = (*estimate.shape, len(left_out))
        by_text = np.stack(left_out, axis=-1) if left_out else np.empty(shape)
        return estimate, jackknife(estimate, by_text, np.broadcast_to(enough[:, None], shape), level)


def _rates(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 1:] / sums[..., :1]
