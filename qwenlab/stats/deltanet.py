"""Half-lives, writes and key collisions of DeltaNet heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.stats.base.source import Source, along, ratio, read, statistic
from qwenlab.stats.base.sums import QUANTILES, Estimate, distribution, estimates, matching_count
from qwenlab.stats.base.variables import described, result
from qwenlab.stats.formulas.keys import collision

_LN_HALF = float(np.log(0.5))
_MEAN_LIVES = {
    "half_life_mean_log": Estimate(
        "token",
        "half-life of the mean log decay",
        sums=("log_alpha_sum", "tokens"),
        of=lambda log_alpha, count: _LN_HALF / ratio(log_alpha, count),
    ),
    "half_life_mean_alpha": Estimate(
        "token",
        "half-life of the mean decay",
        sums=("alpha_sum", "tokens"),
        of=lambda alpha, count: _LN_HALF / xr.ufuncs.log(ratio(alpha, count)),
    ),
}
_WRITTEN = {
    "beta": Estimate("1", "write strength", 1),
    "update_norm": Estimate("1", "norm of the update", over="error_tokens"),
    "error_ratio": Estimate("1", "prediction error over value norm", over="error_tokens"),
    "state_norm": Estimate("1", "norm of the state at a sequence's end", over="sequences"),
}


@statistic
def half_life(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """Half-life of a head's state: number of tokens after which decay alone has halved it.

    A token that decays the state by alpha = exp(g) has the half-life ln(1/2) / g. Tokens of a head differ, so there are
    three definitions, all in tokens, by [layer, head]:

    half_life             [.., quantile]  quantiles over tokens of ln(1/2) / g, from a histogram with bins of a fifth of
                          an octave (interpolated in log2; in the outermost bins, at 2^-6 and 2^26, only a bound)
    half_life_mean_log    ln(1/2) / mean(g): the number of consecutive tokens that halve a state, because decays
                          multiply. Compare this one with distances
    half_life_mean_alpha  ln(1/2) / ln(mean(alpha)): of the mean decay, as often reported. It is never shorter (Jensen),
                          and longer if a head sometimes forgets everything at once
    half_life_share       [.., half_life_bin]  share of tokens in each bin: the distribution itself

    Source: S <- alpha S in Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).
    """
    data = read(source, "deltanet", "half_life_hist", "log_alpha_sum", "alpha_sum", "tokens", by_label=by_label)
    tokens, lives, by_life = distribution(data, "half_life_hist", "half_life_bin", "ratio", quantiles)
    variables = {
        "half_life": described(lives, "token", "half-life of the state", scale="log2"),
        **estimates({**data, "tokens": tokens}, _MEAN_LIVES, level),
        "half_life_share": described(by_life, "share of tokens", "tokens by half-life"),
    }
    return result(data, variables)


@statistic
def writing(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Writes of a head into its state: means over tokens by [layer, head], with intervals.

    beta         write strength, 0 to 1, or to 2 where the model allows negative eigenvalues
    update_norm  ||beta (v - S^T k)||: norm of a token's update to the decayed state S
    error_ratio  ||v - S^T k|| / ||v||: relative error of the state's prediction of the token's value; 1 for an empty
                 state
    state_norm   Frobenius norm of the state at a sequence's end, mean over sequences

    The last three exist for heads whose prediction was measured; `DeltaNet(prediction_heads="all")` measures all.
    """
    names = [f"{name}_sum" for name in _WRITTEN]
    data = read(source, "deltanet", "beta_hist", "tokens", "error_tokens", "sequences", *names, by_label=by_label)
    tokens, predicted = matching_count(data["tokens"], data["beta_hist"], "beta_bin"), data["error_tokens"]
    sequences = data["sequences"].where(predicted.sum("fold") > 0, 0)
    table = _WRITTEN if predicted.any() else {"beta": _WRITTEN["beta"]}
    return result(data, estimates({**data, "tokens": tokens, "sequences": sequences}, table, level))


@statistic
def key_collision(source: Source, *, by_label: bool = False) -> xr.Dataset:
    """Alignment of the keys of different tokens, by [layer, key_head].

    key_collision       expected squared cosine of the keys of two different tokens. With C = mean of k k^T it is
                        tr(C^2), without each token's pair with itself: (tr(M^2) - N) / (N (N - 1)) for M = N C.
    isotropic_floor     1 / d for keys spread evenly over the d channels of a head
    key_directions      1 / key_collision: effective number of directions of the keys, at most d except by chance

    Writes to colliding keys overwrite one another: the delta rule's capacity (Schlag et al. 2021, arXiv:2102.11174).
    """
    data = read(source, "deltanet", "key_moment", "tokens", by_label=by_label)
    collide = along(["channel", "channel_2"], collision, data["key_moment"], data["tokens"].sum("fold"))
    floor = xr.DataArray(1 / data.sizes["channel"])
    variables = {
        "key_collision": described(collide, "1", "squared cosine of two tokens' keys"),
        "isotropic_floor": described(floor, "1", "squared cosine of evenly spread keys"),
        "key_directions": described(1 / collide, "direction", "directions the keys spread over"),
    }
    return result(data, variables)
