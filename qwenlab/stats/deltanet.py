"""What DeltaNet heads keep, write and confuse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.stats.base.source import (
    QUANTILES,
    Source,
    along,
    described,
    estimated,
    measured,
    ratio,
    read,
    result,
    share,
    sketched,
    statistic,
)
from qwenlab.stats.formulas.keys import collision
from qwenlab.stats.formulas.quantiles import log2_quantiles

_LN_HALF = float(np.log(0.5))


@statistic
def half_life(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """How long a head's state keeps what was written: the tokens after which decay alone has halved it.

    A token that decays the state by alpha = exp(g) has the half-life ln(1/2) / g. A head's tokens differ, so there are
    three answers, all in tokens, by [layer, head]:

    half_life             [.., quantile]  quantiles over tokens of ln(1/2) / g, from a sketch of a fifth of an octave
                          a bin (interpolated in log2; in the outermost bins, at 2^-6 and 2^26, only a bound)
    half_life_mean_log    ln(1/2) / mean(g): what halves a state that meets these tokens one after the other, because
                          decays multiply. The one to compare with distances.
    half_life_mean_alpha  ln(1/2) / ln(mean(alpha)): of the mean decay, as often printed. ln(mean(alpha)) >= mean(g)
                          (Jensen), so it is never the shorter. The two agree where alpha is constant, and part where a
                          head now and then forgets all at once.
    half_life_share       [.., half_life_bin]  share of tokens in each bin: the distribution itself

    Source: S <- alpha S in Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).
    """
    data = read(source, "deltanet", "half_life_hist", "log_alpha_sum", "alpha_sum", "tokens", by_label=by_label)
    histogram = data["half_life_hist"]
    tokens = measured(data["tokens"], histogram, "half_life_bin")
    lives = sketched(log2_quantiles, histogram, "half_life_bin", "ratio", quantiles)
    variables = {
        "half_life": described(lives, "token", "half-life of the state", scale="log2"),
        **estimated(
            "half_life_mean_log",
            lambda g, n: _LN_HALF / ratio(g, n),
            (data["log_alpha_sum"], tokens),
            tokens,
            units="token",
            long_name="half-life of the mean log decay",
            level=level,
            within=(0, np.inf),
        ),
        **estimated(
            "half_life_mean_alpha",
            lambda alpha, n: _LN_HALF / xr.ufuncs.log(ratio(alpha, n)),
            (data["alpha_sum"], tokens),
            tokens,
            units="token",
            long_name="half-life of the mean decay",
            level=level,
            within=(0, np.inf),
        ),
        "half_life_share": described(share(histogram, "half_life_bin"), "share of tokens", "tokens by half-life"),
    }
    return result(data, variables)


@statistic
def writing(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """What a head writes into its state: means over tokens by [layer, head], with intervals.

    beta         write strength, 0 to 1
    update_norm  ||beta (v - S^T k)||: norm of what a token adds to the state, S decayed
    error_ratio  ||v - S^T k|| / ||v||: how wrong the state was about the token's value; 1 for an empty state
    state_norm   Frobenius norm of the state at a sequence's end, mean over sequences

    The last three are of the heads whose prediction was asked for (attr sample): NaN for the others, and left out where
    none was. `DeltaNet(prediction_heads="all")` asks all.
    """
    sums_ = ("beta_sum", "update_norm_sum", "error_ratio_sum", "state_norm_sum")
    data = read(source, "deltanet", "beta_hist", "tokens", "error_tokens", "sequences", *sums_, by_label=by_label)
    tokens = measured(data["tokens"], data["beta_hist"], "beta_bin")
    asked = data["error_tokens"]
    ended = data["sequences"].where(asked.sum("fold") > 0, 0)
    means = (
        ("beta", tokens, "write strength", (0, 1)),
        ("update_norm", asked, "norm of the update", (0, np.inf)),
        ("error_ratio", asked, "prediction error over value norm", (0, np.inf)),
        ("state_norm", ended, "norm of the state at a sequence's end", (0, np.inf)),
    )
    variables: dict[str, xr.DataArray] = {}
    for name, count, long_name, within in means if asked.any() else means[:1]:
        sums = (data[f"{name}_sum"], count)
        variables |= estimated(name, ratio, sums, count, units="1", long_name=long_name, level=level, within=within)
    return result(data, variables)


@statistic
def key_collision(source: Source, *, by_label: bool = False) -> xr.Dataset:
    """How much the keys of different tokens point the same way, by [layer, key_head].

    key_collision       expected squared cosine of the keys of two different tokens. With C = mean of k k^T it is
                        tr(C^2), a token's pair with itself taken out: (tr(M^2) - N) / (N (N - 1)) for M = N C.
    isotropic_floor     1 / d for keys spread evenly over the d channels of a head
    key_directions      1 / key_collision: over how many directions the keys spread, d at most but for chance

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
