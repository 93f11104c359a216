"""Intervals of all statistics: three constructions, over independent clusters (texts, prompts or folds of them).

    jackknife  a smooth statistic of sums, unbounded or far from its bounds: Student's t on the jackknife error
    share      a share, or a mean within known bounds, also close to them: Wilson's score interval
    bootstrap  means of text scores and their ratios, which may be skewed: expanded percentiles

Tokens and rounds of one text resemble each other, so no interval takes them as independent.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

_BLOCK = 256  # bootstrap draws at a time
_TINY = 1e-12  # a variance up to this is rounding


def jackknife(estimate: np.ndarray, left_out: np.ndarray, counted: np.ndarray, level: float) -> np.ndarray:
    """Student's interval around an estimate, with the error of the delete-one-cluster jackknife (Tukey 1958).

    estimate  [...]            statistic of all clusters
    left_out  [..., cluster]   statistic without that cluster
    counted   [..., cluster]   bool: the cluster holds data; others are ignored
    returns   [..., 2]         low, high; NaN with fewer than two clusters, or where one of `left_out` is not defined

    With m clusters the squared error is (m - 1) / m times the sum of squared deviations of `left_out` from its mean.
    Of a mean this is Student's interval. For a ratio over 8 clusters at 0.95 it covered 0.92 to 0.96 in simulation.
    """
    error, reach = _jackknife_error(left_out, counted, level)
    return np.stack([estimate - reach * error, estimate + reach * error], axis=-1)


def share(
    estimate: np.ndarray,
    left_out: np.ndarray,
    trials: np.ndarray,
    level: float,
    *,
    least: float | np.ndarray = 0,
    most: float | np.ndarray = 1,
) -> np.ndarray:
    """Wilson's score interval of a mean within [least, most], at its effective number of trials.

    estimate  [...]            mean over all trials; least, most likewise
    left_out  [..., cluster]   mean without that cluster
    trials    [..., cluster]   trials in each cluster, such as rounds of a prompt; empty clusters are ignored
    returns   [..., 2]         low, high, within [least, most]; NaN with fewer than two clusters

    The effective number is p (1 - p) over the squared jackknife error of p, the mean rescaled to [0, 1], times
    (z / t)^2 for the few clusters (Korn and Graubard 1998, Survey Methodology 24:193; with Wilson's interval: Dean and
    Pagano 2015, J. Surv. Stat. Methodol. 3:484), at most the number of trials. So an estimate at an end, such as 128 of
    128, has an interval, [0.97, 1], which takes the trials as independent and may be too short.

    With 8 and 32 prompts at 0.95 it covered 0.93 to 0.98 in simulation, for shares from 0.3 to 0.99.
    """
    width = most - least
    p = (estimate - least) / width
    error, reach = _jackknife_error(left_out, trials > 0, level)
    z = stats.norm.ppf(0.5 + level / 2)
    total = np.where(trials > 0, trials, 0).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (reach / z * error / width) ** 2
        effective = np.where(variance > _TINY, np.minimum(p * (1 - p) / variance, total), total + 0 * variance)
        weight = z**2 / effective
        centre = (p + weight / 2) / (1 + weight)
        half = np.sqrt(weight * np.maximum(p * (1 - p), 0) + weight**2 / 4) / (1 + weight)
    ends = np.stack([centre - half, centre + half], axis=-1)
    return np.asarray(least)[..., None] + np.asarray(width)[..., None] * ends.clip(0, 1)


def bootstrap(
    sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray], *, level: float, resamples: int, seed: int
) -> np.ndarray:
    """Bootstrap of a statistic of sums, drawing whole clusters with replacement (Efron 1979); expanded percentiles.

    sums     [cluster, column]  what each cluster adds
    of       [..., column] -> [..., value], of sums over clusters
    returns  [value, 2]         low, high, over the draws in which the value is defined; NaN with fewer than two
                                clusters, or where it never is

    The percentiles are those at which a normal distribution would end Student's interval with its unbiased spread
    (Hesterberg 2015, doi:10.1080/00031305.2015.1089789). For means of 6 to 32 texts at 0.95 it covered 0.92 to 0.95 in
    simulation, and 0.88 to 0.94 for exponential scores. It cannot reach beyond the clusters' own values. The same seed
    draws the same clusters, whatever the values.
    """
    clusters = len(sums)
    if clusters < 2:
        return np.full((of(sums.sum(axis=0)).shape[-1], 2), np.nan)
    rng = np.random.default_rng(seed)
    blocks = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    even = np.full(clusters, 1 / clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.concatenate([of(rng.multinomial(clusters, even, size=block) @ sums) for block in blocks])
    expanded = expanded_level(level, clusters)
    defined = [column[~np.isnan(column)] for column in drawn.T]
    return np.stack([central(column, expanded) if len(column) else np.full(2, np.nan) for column in defined])


def central(values: np.ndarray, level: float) -> np.ndarray:
    """Central interval of values [..., draw] that contains this share of them: [..., 2], low and high."""
    return np.moveaxis(np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=-1), 0, -1)


def expanded_level(level: float, clusters: int) -> float:
    """Level at which plain bootstrap percentiles of this many clusters have the coverage `level`."""
    if clusters < 2:
        return level
    reach = np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.5 + level / 2, clusters - 1)
    return float(min(1 - 2 * stats.norm.sf(reach), np.nextafter(1, 0)))


def mean_reach(values: np.ndarray, level: float) -> float:
    """Half width of Student's interval of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return np.nan
    return float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def widened(estimate: np.ndarray, interval: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Widen an interval [..., bound] of an estimate [...] by an independent error of half width `reach` [...].

    Distances from the estimate add up in squares (MOVER: Zou and Donner 2008, doi:10.1002/sim.3095).
    """
    low = estimate - np.hypot(estimate - interval[..., 0], reach)
    return np.stack([low, estimate + np.hypot(interval[..., 1] - estimate, reach)], axis=-1)


def jackknife_of_sums(
    sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray], counted: np.ndarray, level: float
) -> np.ndarray:
    """`jackknife` of a statistic of sums: [value, 2].

    sums     [cluster, column];  of  [..., column] -> [..., value], of sums over clusters
    counted  bool [cluster, value]: the cluster holds data
    """
    return jackknife(of(sums.sum(axis=0)), _without_each(sums, of), counted.T, level)


def share_of_sums(
    sums: np.ndarray,
    of: Callable[[np.ndarray], np.ndarray],
    trials: np.ndarray,
    level: float,
    *,
    least: float | np.ndarray = 0,
    most: float | np.ndarray = 1,
) -> np.ndarray:
    """`share` of a statistic of sums: as `jackknife_of_sums`, with trials [cluster, value]."""
    return share(of(sums.sum(axis=0)), _without_each(sums, of), trials.T, level, least=least, most=most)


def by_cluster(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Sum rows [row, column] by their cluster [row]: [cluster, column], in the order of the cluster numbers."""
    _, index = np.unique(cluster, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    return np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)


def _jackknife_error(left_out: np.ndarray, counted: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife error [...], and Student's quantile for the number of counted clusters; NaN for fewer than two."""
    clusters = counted.sum(axis=-1)
    enough = np.where(clusters > 1, clusters, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counted, left_out, 0).sum(axis=-1) / enough
        deviation = np.where(counted, left_out - mean[..., None], 0)
        error = np.sqrt((enough - 1) / enough * (deviation**2).sum(axis=-1))
        return error, stats.t.ppf(0.5 + level / 2, enough - 1)


def _without_each(sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Statistic of sums [cluster, column] with each cluster left out in turn: [value, cluster]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.moveaxis(of(sums.sum(axis=0) - sums), 0, -1)
