"""Quantiles of a histogram, interpolated within the bin in which the cumulated share passes q.

All functions take counts [..., bin] (any non-negative weights), edges [bin + 1] and q [quantile], strictly between 0
and 1, and return [..., quantile]; NaN where nothing was counted. The sample quantile (the smallest value with at least
q of the samples at or below it) lies in the same bin, so the error is below that bin's width.
"""

import numpy as np


def linear_quantiles(counts: np.ndarray, edges: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Quantiles, with samples spread evenly within a bin."""
    index, inside = _passing_bin(counts, q)
    return edges[index] + inside * (edges[index + 1] - edges[index])


def log2_quantiles(counts: np.ndarray, edges: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Quantiles, with the logarithms of samples spread evenly within a bin."""
    return np.exp2(linear_quantiles(counts, np.log2(edges), q))


def integer_quantiles(counts: np.ndarray, edges: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Quantiles of integers: a bin [a, b) holds a, a + 1, ..., b - 1 equally often; exact for bins of one integer."""
    index, inside = _passing_bin(counts, q)
    width = edges[index + 1] - edges[index]
    return edges[index] + np.maximum(np.ceil(inside * width) - 1, 0)


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts [..., bin] as shares of their sum; NaN where nothing was counted."""
    total = counts.sum(axis=-1, keepdims=True)
    return counts / np.where(total > 0, total, np.nan)


def _passing_bin(counts: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin in which the cumulated count reaches q of the sum, and how far into it (0 to 1; NaN without counts)."""
    counts = np.asarray(counts, np.float64)
    cumulated = np.cumsum(counts, axis=-1)
    goal = q * cumulated[..., -1:]
    index = np.stack([(cumulated < count[..., None]).sum(axis=-1) for count in np.moveaxis(goal, -1, 0)], axis=-1)
    index = np.minimum(index, counts.shape[-1] - 1)
    inside_bin = np.take_along_axis(counts, index, axis=-1)
    before = np.take_along_axis(cumulated, index, axis=-1) - inside_bin
    with np.errstate(invalid="ignore", divide="ignore"):
        return index, np.clip((goal - before) / inside_bin, 0, 1)
