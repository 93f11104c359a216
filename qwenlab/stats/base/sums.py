"""Means, shares and quantiles from the sums and histograms that probes collect by fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, InconsistentRecording
from qwenlab.stats.base.source import RECORD_AGAIN, along, ratio
from qwenlab.stats.base.variables import Variables, bounds, described, jackknife_method
from qwenlab.stats.formulas.intervals import jackknife
from qwenlab.stats.formulas.quantiles import shares

Spacing = Literal["equal", "ratio", "octave"]
"""How a histogram's edges follow: equal steps, each the same multiple of the last, or 1, 1.5, 2, 3, 4, 6, ..."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Default quantiles of a distribution."""


class MeanSum(NamedTuple):
    """Definition of a mean as the quotient of two sums, with its units, meaning and bounds.

    over    name of the denominator: "tokens" for a mean over tokens
    total   name of the numerator; by default the name of the mean, with "_sum"
    counts  name of the count that says which folds hold data; by default `over`
    """

    units: str
    long_name: str
    most: float = np.inf
    least: float = 0.0
    over: str = "tokens"
    total: str = ""
    counts: str = ""


def means(sums: Mapping[Any, xr.DataArray], table: Mapping[str, MeanSum], level: float) -> Variables:
    """Compute those means of a table whose sums are present, with their intervals."""
    out: Variables = {}
    for name, (units, long_name, most, least, over, total, counts) in table.items():
        if (total or f"{name}_sum") in sums:
            parts = sums[total or f"{name}_sum"], sums[over]
            count, within = sums[counts or over], (least, most)
            out |= estimated(name, ratio, parts, count, units=units, long_name=long_name, level=level, within=within)
    return out


def estimated(
    name: str,
    of: Callable[..., xr.DataArray],
    sums: Sequence[xr.DataArray],
    count: xr.DataArray,
    *,
    units: str,
    long_name: str,
    level: float,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Variables:
    """Compute a statistic of sums over folds, and its jackknife interval: {name: ..., name_interval: ...}.

    of      computes the statistic from sums without the dim fold
    sums    DataArrays with the dim fold
    count   tokens or other counts by fold; empty folds are ignored
    within  the values the statistic can have: the interval is cut there
    """
    method = jackknife_method(level, "fold")
    whole = [s.sum("fold") for s in sums]
    estimate = of(*whole)
    left_out = of(*(total - s for total, s in zip(whole, sums, strict=True)))
    interval = along(["fold"], jackknife, estimate, left_out, count > 0, out=["bound"], level=level).clip(*within)
    return {
        name: described(estimate, units, long_name),
        f"{name}_interval": described(bounds(interval), units, f"{long_name}, interval", **method),
    }


def matching_count(count: xr.DataArray, histogram: xr.DataArray, dim: str) -> xr.DataArray:
    """Return the count [..., fold, layer] of heads that have a histogram, 0 for heads outside the sample.

    Raises InconsistentRecording if a head's histogram does not add up to its count.
    """
    by_histogram, by_count = histogram.sum(dim), count.sum("fold")
    if not bool(((by_histogram == 0) | (abs(by_histogram - by_count) <= 1e-3 * by_count)).all()):
        raise InconsistentRecording(
            f"{histogram.name} adds up to {float(by_histogram.max()):,.0f} and {count.name} to "
            f"{float(by_count.max()):,.0f}: they do not count the same tokens.\n{RECORD_AGAIN}"
        )
    return count.where(by_histogram > 0, 0)


def histogram_quantiles(
    formula: Callable[..., np.ndarray], counts: xr.DataArray, dim: str, spacing: Spacing, q: Sequence[float]
) -> xr.DataArray:
    """Quantiles [..., quantile] of a histogram along `dim`, by one of `formulas.quantiles`; raises BadArgument."""
    wanted = np.asarray(q, np.float64)
    if wanted.ndim != 1 or not ((wanted > 0) & (wanted < 1)).all():
        raise BadArgument(f"quantiles={q!r}: give numbers between 0 and 1, both excluded, such as {QUANTILES}.")
    at = along([dim], formula, counts, out=["quantile"], edges=_edges(counts[dim], spacing), q=wanted)
    return at.assign_coords(quantile=wanted)


def share(counts: xr.DataArray, dim: str) -> xr.DataArray:
    """Divide counts by their sum along `dim`."""
    return along([dim], shares, counts, out=[dim])


def join_layers(nodes: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join statistics of both kinds of mixer, sorted by layer; NaN where a kind lacks a variable or a head."""
    joined = xr.concat(nodes, "layer", data_vars="all", coords="different", compat="equals", join="outer")
    return joined.sortby("layer")


def _edges(lower: xr.DataArray, spacing: Spacing) -> np.ndarray:
    """All edges [bin + 1] of a histogram, from its lower edges."""
    edges = lower.values.astype(np.float64)
    last = {"equal": 2 * edges[-1] - edges[-2], "ratio": edges[-1] ** 2 / edges[-2], "octave": 2 * edges[-2]}
    return np.append(edges, last[spacing])
