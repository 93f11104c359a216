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
from qwenlab.stats.formulas.quantiles import integer_quantiles, linear_quantiles, log2_quantiles, shares

Spacing = Literal["equal", "ratio", "octave"]
"""How a histogram's edges follow: equal steps, each the same multiple of the last, or 1, 1.5, 2, 3, 4, 6, ..."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Default quantiles of a distribution."""


class Estimate(NamedTuple):
    """Definition of a statistic of sums over folds: by default a mean, the quotient of two sums.

    most, least  values that it can have: its interval is cut there
    over         name of the denominator, which is also the count by fold: empty folds are ignored
    sums         names of the sums; by default the name of the statistic with "_sum", and `over`
    counts       name of the count by fold, if it is not `over`
    of           computes the statistic from the sums without the dim fold
    """

    units: str
    long_name: str
    most: float = np.inf
    least: float = 0.0
    over: str = "tokens"
    sums: tuple[str, ...] = ()
    counts: str = ""
    of: Callable[..., xr.DataArray] = ratio


def estimates(data: Mapping[Any, xr.DataArray], table: Mapping[str, Estimate], level: float) -> Variables:
    """Compute those statistics of a table whose first sum is in the data, with jackknife intervals over folds."""
    out: Variables = {}
    method = jackknife_method(level, "fold")
    for name, (units, long_name, most, least, over, names, counts, of) in table.items():
        names = names or (f"{name}_sum", over)
        if names[0] in data:
            sums, counted = [data[each] for each in names], data[counts or over] > 0
            whole = [each.sum("fold") for each in sums]
            estimate = of(*whole)
            left_out = of(*(total - each for total, each in zip(whole, sums, strict=True)))
            interval = along(["fold"], jackknife, estimate, left_out, counted, out=["bound"], level=level)
            interval = bounds(interval.clip(least, most))
            out[name] = described(estimate, units, long_name)
            out[f"{name}_interval"] = described(interval, units, f"{long_name}, interval", **method)
    return out


def matching_count(count: xr.DataArray, histogram: xr.DataArray, dim: str) -> xr.DataArray:
    """Return the count, 0 for heads outside the sample; raises InconsistentRecording if a histogram differs from it."""
    by_histogram, by_count = histogram.sum(dim), count.sum("fold")
    if not bool(((by_histogram == 0) | (abs(by_histogram - by_count) <= 1e-3 * by_count)).all()):
        raise InconsistentRecording(
            f"{histogram.name} adds up to {float(by_histogram.max()):,.0f} and {count.name} to "
            f"{float(by_count.max()):,.0f}: they do not count the same tokens.\n{RECORD_AGAIN}"
        )
    return count.where(by_histogram > 0, 0)


def histogram_quantiles(
    counts: xr.DataArray, dim: str, spacing: Spacing, q: Sequence[float], argument: str = "quantiles"
) -> xr.DataArray:
    """Quantiles [..., quantile] of a histogram along `dim`; raises BadArgument, in the name of the argument."""
    wanted = np.asarray(q, np.float64)
    if wanted.ndim != 1 or not ((wanted > 0) & (wanted < 1)).all():
        raise BadArgument(f"{argument}={q!r}: give numbers between 0 and 1, both excluded, such as {QUANTILES}.")
    edges = counts[dim].values.astype(np.float64)  # the lower ones
    formula, last = {
        "equal": (linear_quantiles, 2 * edges[-1] - edges[-2]),
        "ratio": (log2_quantiles, edges[-1] ** 2 / edges[-2]),
        "octave": (integer_quantiles, 2 * edges[-2]),
    }[spacing]
    at = along([dim], formula, counts, out=["quantile"], edges=np.append(edges, last), q=wanted)
    return at.assign_coords(quantile=wanted)


def distribution(
    data: xr.Dataset, name: str, dim: str, spacing: Spacing, q: Sequence[float]
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """`matching_count` of the tokens of a histogram, its quantiles, and its shares by bin."""
    counts = data[name]
    tokens = matching_count(data["tokens"], counts, dim)
    return tokens, histogram_quantiles(counts, dim, spacing, q), share(counts, dim)


def share(counts: xr.DataArray, dim: str) -> xr.DataArray:
    """Divide counts by their sum along `dim`."""
    return along([dim], shares, counts, out=[dim])


def join_layers(nodes: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join statistics of both kinds of mixer, sorted by layer; NaN where a kind lacks a variable or a head."""
    joined = xr.concat(nodes, "layer", data_vars="all", coords="different", compat="equals", join="outer")
    return joined.sortby("layer")
