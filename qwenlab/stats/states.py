"""DeltaNet states: their norm, rank and growth over a text."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.base.source import Source, ratio, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import described, result


def growth(total: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """log2 of the mean in a bin over that in the bin before, an octave lower."""
    size = xr.ufuncs.log2(ratio(total, count))
    return (size - size.shift(position_bin=1)).where(size["position_bin"] > 1)


_SIZES = {
    "norm": Estimate("1", "norm of the state"),
    "largest": Estimate("1", "largest singular value of the state"),
    "rewrite": Estimate("1", "change of the state by a token, over its norm", over="rewrites"),
    "growth": Estimate(
        "1", "growth of the norm by an octave of position", least=-np.inf, sums=("norm_sum", "tokens"), of=growth
    ),
}


@statistic
def state_rank(source: Source, *, by_position: bool = True, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Rank of the state: means over tokens by [layer, head, position_bin], with intervals.

    effective_rank  exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007, EUSIPCO)
    stable_rank     sum of the squared singular values over the largest one's (Rudelson & Vershynin 2007)
    full_rank       upper limit of both: the smaller of key channels and channels

    position_bin is the octave of the token's position (0, 1, 2-3, 4-7, ...); by_position=False adds them up. Late bins
    contain only the longer texts: read texts of equal length to compare positions.
    """
    data = read(source, "deltastate", "effective_rank_sum", "stable_rank_sum", "tokens", by_label=by_label)
    data = data if by_position else data.sum("position_bin", keep_attrs=True)
    full = int(data.attrs["full_rank"])
    table = {
        f"{name}_rank": Estimate("direction", f"{name} rank of the state", full) for name in ("effective", "stable")
    }
    variables = estimates(data, table, level)
    variables["full_rank"] = described(xr.DataArray(full), "direction", "largest rank that a state can have")
    return result(data, variables)


@statistic
def state_growth(source: Source, *, share: float = 0.9, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Growth of a state over its text, and its rate of change: means over tokens by [layer, head, position_bin].

    norm            Frobenius norm of the state
    largest         its largest singular value
    rewrite         change by a token over the norm before: ||S_t - S_(t-1)|| / ||S_(t-1)||
    growth          log2 of the mean norm over that of the octave before: 0 if the state is saturated, 1/2 if
                    independent writes add up and nothing is forgotten, 1 if all writes are equal; from position 2 on
    saturated_from  [layer, head] tokens: lower edge of the first octave whose mean norm is at least `share` of the
                    largest octave's; the last octave read if the norm still grows

    All but the last with intervals. position_bin as in `state_rank`.
    """
    if not 0 < share <= 1:
        raise BadArgument(f"share={share!r}: give the share of the largest norm that counts as saturated, up to 1.")
    names = ("norm_sum", "largest_sum", "rewrite_sum", "rewrites", "tokens")
    data = read(source, "deltastate", *names, by_label=by_label)
    variables = estimates(data, _SIZES, level)
    norm = variables["norm"]
    full = norm >= share * norm.max("position_bin")
    first = norm["position_bin"].isel(position_bin=full.argmax("position_bin"))
    first = first.where(norm.notnull().any("position_bin")).drop_vars("position_bin")
    variables["saturated_from"] = described(first, "token", f"position from which the norm is {share:g} of its largest")
    return result(data, variables)
