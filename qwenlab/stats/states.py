"""What the states of DeltaNet heads are like: how large, of what rank, what they still hold of a pair."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.base.source import Source, described, estimated, ratio, read, result, statistic


@statistic
def state_rank(source: Source, *, by_position: bool = True, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Over how many directions a state spreads: means over tokens by [layer, head, position_bin], with intervals.

    effective_rank  exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007, EUSIPCO)
    stable_rank     sum of the squared singular values over the largest one's (Rudelson & Vershynin 2007)
    full_rank       what both are at most: the smaller of key channels and channels

    position_bin is the octave of the token's position (0, 1, 2-3, 4-7, ...). Late ones hold the longer texts only: read
    texts of one length to compare positions. by_position=False: one number a head, over all tokens measured.
    """
    data = read(source, "deltastate", "effective_rank_sum", "stable_rank_sum", "tokens", by_label=by_label)
    data = data if by_position else data.sum("position_bin", keep_attrs=True)
    full = int(data.attrs["full_rank"])
    variables: dict[str, xr.DataArray] = {}
    for name, what in (("effective_rank", "effective rank of the state"), ("stable_rank", "stable rank of the state")):
        sums = (data[f"{name}_sum"], data["tokens"])
        variables |= estimated(
            name, ratio, sums, data["tokens"], units="direction", long_name=what, level=level, within=(0, full)
        )
    variables["full_rank"] = described(xr.DataArray(full), "direction", "largest rank that a state can have")
    return result(data, variables)


@statistic
def state_growth(source: Source, *, share: float = 0.9, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """How a state grows over its text and how fast it is rewritten: means over tokens by [layer, head, position_bin].

    norm            Frobenius norm of the state
    largest         its largest singular value
    rewrite         what a token changes, over the norm before: ||S_t - S_(t-1)|| / ||S_(t-1)||
    growth          log2 of the mean norm over that of the octave before: 0 where the state is saturated, 1/2 where
                    unrelated writes add up and nothing is forgotten, 1 where all write the same; from position 2 on
    saturated_from  [layer, head] tokens: lower edge of the first octave whose mean norm is at least `share` of the
                    largest octave's; the last octave read, where the norm still grows

    All but the last with intervals. position_bin as in `state_rank`.
    """
    if not 0 < share <= 1:
        raise BadArgument(f"share={share!r}: give the part of the largest norm that counts as saturated, up to 1.")
    names = ("norm_sum", "largest_sum", "rewrite_sum", "rewrites", "tokens")
    data = read(source, "deltastate", *names, by_label=by_label)
    tokens, zero = data["tokens"], (0.0, np.inf)
    means = (
        ("norm", tokens, "norm of the state", zero),
        ("largest", tokens, "largest singular value of the state", zero),
        ("rewrite", data["rewrites"], "change of the state by a token, over its norm", zero),
    )
    variables: dict[str, xr.DataArray] = {}
    for name, count, what, within in means:
        sums = (data[f"{name}_sum"], count)
        variables |= estimated(name, ratio, sums, count, units="1", long_name=what, level=level, within=within)
    sums, what = (data["norm_sum"], tokens), "growth of the norm by an octave of position"
    variables |= estimated("growth", _growth, sums, tokens, units="1", long_name=what, level=level)
    norm = variables["norm"]
    full = norm >= share * norm.max("position_bin")
    first = norm["position_bin"].isel(position_bin=full.argmax("position_bin"))
    first = first.where(norm.notnull().any("position_bin")).drop_vars("position_bin")
    variables["saturated_from"] = described(first, "token", f"position from which the norm is {share:g} of its largest")
    return result(data, variables)


def _growth(total: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """log2 of the mean in a bin over that in the bin before, of bins that are an octave apart."""
    size = xr.ufuncs.log2(ratio(total, count))
    return (size - size.shift(position_bin=1)).where(size["position_bin"] > 1)


@statistic
def retention(
    source: Source,
    *,
    by: Literal["distance", "writes"] | None = "distance",
    by_label: bool = False,
    level: float = 0.95,
) -> xr.Dataset:
    """What heads still know of a stored pair (key k_s, value v_s): means over pairs by [layer, head, bin].

    by  "distance": octaves of the tokens since (`distance_bin`); "writes": of the write strengths since, summed
        (`writes_bin`): how many pairs were stored in between; None: no bins, all pairs asked for, which are about as
        many of each octave of distance

    recall       mean of <S_t^T k_s, v_s> / ||v_s||^2: how much of the value the state gives back; 1: all
    before       the same just before the pair was stored: what the state gives back of a pair that is not in it, where
                 keys are alike and values have a part in common
    survival     what is left of what storing the pair added: (recall - before) / (written - before), written being the
                 recall right after, each summed over pairs. 1 at first, 0 where the state knows no more than before
    decay_alone  the same had no later token written: what decay leaves
    overwritten  decay_alone - survival: the part that later writes to similar keys took (negative: they added)
    error        mean of ||S_t^T k_s - v_s|| / ||v_s||, the retrieval error: other pairs under similar keys are in it
    pairs        how many pairs were asked for

    All but the last with intervals. Survival can stay above 0 where a text writes the same again.

    Source: S <- alpha S; S <- S + k (beta (v - S^T k))^T in Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), whose
    second step removes what similar keys had stored (Schlag et al. 2021, arXiv:2102.11174).
    """
    if by not in ("distance", "writes", None):
        raise BadArgument(f"by={by!r}: retention is told by 'distance', by 'writes', or by None of them.")
    binned = by or "distance"
    names = [f"{name}_by_{binned}" for name in ("recall", "before", "written", "decayed", "error", "pairs")]
    data = read(source, "retention", "tokens", *names, by_label=by_label)
    data = data if by else data.sum(f"{binned}_bin", keep_attrs=True)
    recall, before, written, decayed, error, pairs = (data[name] for name in names)
    left, added = recall - before, written - before
    means = (
        ("recall", (recall, pairs), ratio, "value given back"),
        ("before", (before, pairs), ratio, "value given back before it was stored"),
        ("survival", (left, added), _over, "what is left of a stored value"),
        ("decay_alone", (decayed, added), _over, "what decay alone leaves of a stored value"),
        ("overwritten", (decayed - left, added), _over, "part of a stored value that was overwritten"),
        ("error", (error, pairs), ratio, "retrieval error"),
    )
    variables: dict[str, xr.DataArray] = {}
    for name, sums, of, what in means:
        within = (0.0, np.inf) if name in ("decay_alone", "error") else (-np.inf, np.inf)
        variables |= estimated(name, of, sums, pairs, units="1", long_name=what, level=level, within=within)
    variables["pairs"] = described(pairs.sum("fold"), "pair", "pairs asked for")
    return result(data, variables)


def _over(total: xr.DataArray, stored: xr.DataArray) -> xr.DataArray:
    """What is left of what was stored; NaN where that was nothing."""
    return total / stored.where(stored > 0)


@statistic
def state_precision(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """How far states kept in low precision stray: means over tokens by [layer, format, head, position_bin].

    error    ||S' - S|| / ||S||, S' being the state rounded to the format after every so many tokens (`after` in the
             attr sample) from the text's beginning on, and S that in float32; with an interval
    growth   log2 of the mean error over that of the octave before: 0 where errors are forgotten as fast as they are
             made, 1/2 where unrelated ones add up; from position 2 on
    """
    data = read(source, "state_precision", "error_sum", "tokens", by_label=by_label)
    sums, tokens = (data["error_sum"], data["tokens"]), data["tokens"]
    variables = {
        **estimated(
            "error",
            ratio,
            sums,
            tokens,
            units="1",
            long_name="error of the state, of its norm",
            level=level,
            within=(0, np.inf),
        ),
        **estimated(
            "growth",
            _growth,
            sums,
            tokens,
            units="1",
            long_name="growth of the error by an octave of position",
            level=level,
        ),
    }
    return result(data, variables)
