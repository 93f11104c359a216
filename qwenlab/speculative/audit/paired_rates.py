"""`PairedRates`: rates of several conditions on the same texts, and their differences, with intervals over texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwenlab.stats.formulas.intervals import jackknife

MIN_TEXTS = 4
"""Minimum number of texts for an interval."""


@dataclass(frozen=True, eq=False)
class PairedRates:
    """Rates from sums [condition, text, column] on the same texts: column 0 is a count, the others are sums over it.

    Intervals are `stats.formulas.intervals.jackknife` over the texts with a count above 0; NaN below `MIN_TEXTS`. Each
    text is left out of all conditions at once, so its effect on all of them does not add to the error of a difference.
    """

    sums: np.ndarray

    def rates(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates [condition, column - 1], within 0 and 1, and intervals [..., 2]; NaN where the count is 0."""
        rates, interval = self._estimate(lambda rates: rates, self.sums[..., 0] > 0, level)
        return rates, interval.clip(0, 1)

    def effects(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Rates minus those of the first condition, [condition, column - 1], and intervals [..., 2]."""
        counted = self.sums[..., 0] > 0
        return self._estimate(lambda rates: rates - rates[:1], counted & counted[:1], level)

    def _estimate(
        self, function: Callable[[np.ndarray], np.ndarray], counted: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        total = self.sums.sum(axis=1, keepdims=True)
        estimate = function(_rates(total))[:, 0]
        left_out = np.ascontiguousarray(function(_rates(total - self.sums)).swapaxes(1, 2))  # [.., text left out]
        enough = counted & (counted.sum(axis=1, keepdims=True) >= MIN_TEXTS)
        return estimate, jackknife(estimate, left_out, np.broadcast_to(enough[:, None], left_out.shape), level)


def _rates(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 1:] / sums[..., :1]
