"""DeltaNet states: norm, rank, growth, error in low precision, and the stored key-value pairs that they return."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.arguments import choice
from qwenlab.errors import BadArgument
from qwenlab.stats.base.source import Source, ratio, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import described, result


def _growth(total: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """log2 of the mean in a bin over that in the bin before, an octave lower."""
    size = xr.ufuncs.log2(ratio(total, count))
    return (size - size.shift(position_bin=1)).where(size["position_bin"] > 1)


_SIZES = {
    "norm": Estimate("1", "norm of the state"),
    "largest": Estimate("1", "largest singular value of the state"),
    "rewrite": Estimate("1", "change of the state by a token, over its norm", over="rewrites"),
    "growth": Estimate(
        "1", "growth of the norm by an octave of position", least=-np.inf, sums=("norm_sum", "tokens"), of=_growth
    ),
}
_PAIRS = {
    "recall": Estimate("1", "value returned", least=-np.inf, over="pairs"),
    "before": Estimate("1", "value returned before it was stored", least=-np.inf, over="pairs"),
    "survival": Estimate("1", "part of a stored value that is left", least=-np.inf, over="added", counts="pairs"),
    "decay_alone": Estimate("1", "part of a stored value that decay alone leaves", over="added", counts="pairs"),
    "overwritten": Estimate("1", "overwritten part of a stored value", least=-np.inf, over="added", counts="pairs"),
    "error": Estimate("1", "retrieval error", over="pairs"),
}
_ERRORS = {
    "error": Estimate("1", "error of the state, of its norm"),
    "growth": Estimate(
        "1", "growth of the error by an octave of position", least=-np.inf, sums=("error_sum", "tokens"), of=_growth
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


@statistic
def state_precision(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Error of states in low precision: means over tokens by [layer, format, head, position_bin].

    error    ||S' - S|| / ||S||, S' being the state rounded to the format every `after` tokens (attr sample) from the
             beginning of the text on, and S the state in float32; with an interval
    growth   log2 of the mean error over that of the octave before: 0 if errors decay as fast as they arise, 1/2 if
             independent errors add up; from position 2 on
    """
    data = read(source, "state_precision", "error_sum", "tokens", by_label=by_label)
    return result(data, estimates(data, _ERRORS, level))


@statistic
def retention(
    source: Source,
    *,
    by: Literal["distance", "writes"] | None = "distance",
    by_label: bool = False,
    level: float = 0.95,
) -> xr.Dataset:
    """How much of a stored pair (key k_s, value v_s) a state returns: means over pairs by [layer, head, bin].

    by  "distance": octaves of the number of tokens since (`distance_bin`); "writes": octaves of the sum of write
        strengths since (`writes_bin`), the number of pairs stored in between; None: no bins, all queried pairs, about
        equally many in each octave of distance

    recall       mean of <S_t^T k_s, v_s> / ||v_s||^2: the part of the value that the state returns; 1: all
    before       the same just before the pair was stored: above 0 if keys are similar and values have a common part
    survival     the rest of what storing the pair added: (recall - before) / (written - before), each summed over
                 pairs, where written is the recall right after. 1 at first, 0 if nothing of the pair is left
    decay_alone  the same if no later token wrote: the part that decay leaves
    overwritten  decay_alone - survival: the part that later writes to similar keys removed (negative: added)
    error        mean of ||S_t^T k_s - v_s|| / ||v_s||, the retrieval error, including other pairs under similar keys
    pairs        number of queried pairs

    Survival can stay above 0 if a text writes the same pair again.

    Source: S <- alpha S; S <- S + k (beta (v - S^T k))^T in Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), whose
    second step removes what similar keys had stored (Schlag et al. 2021, arXiv:2102.11174).
    """
    choice("stats.retention", "by", by, ("distance", "writes", None))
    binned = by or "distance"
    names = [f"{name}_by_{binned}" for name in ("recall", "before", "written", "decayed", "error", "pairs")]
    data = read(source, "retention", "tokens", *names, by_label=by_label)
    data = data if by else data.sum(f"{binned}_bin", keep_attrs=True)
    recall, before, written, decayed, error, pairs = (data[name] for name in names)
    left, added = recall - before, written - before
    sums = {"recall_sum": recall, "before_sum": before, "error_sum": error, "added": added, "pairs": pairs}
    sums |= {"survival_sum": left, "decay_alone_sum": decayed, "overwritten_sum": decayed - left}
    variables = estimates(sums, _PAIRS, level)
    variables["pairs"] = described(pairs.sum("fold"), "pair", "queried pairs")
    return result(data, variables)
