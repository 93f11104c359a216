"""Collision of keys: mean squared cosine of unit vectors."""

import numpy as np


def collision(moment: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Mean squared cosine over pairs of different vectors among N unit vectors k.

    moment   [..., d, d]  M, the sum of k k^T
    tokens   [...]        N
    returns  [...]        (tr(M^2) - N) / (N (N - 1)), as tr(M^2) sums (k . k')^2 over all N^2 pairs; NaN for N < 2, or
                          if M is 0: not measured
    """
    squared = (moment**2).sum(axis=(-2, -1))
    pairs = tokens * (tokens - 1.0)
    return (squared - tokens) / np.where((pairs > 0) & (squared > 0), pairs, np.nan)
