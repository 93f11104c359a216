"""Calibration of the draft head: draft probabilities compared with acceptance rates."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.arguments import integer
from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.rounds import about, by_place, read_rounds
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.base.variables import Row, jackknife_method, share_method, variables
from qwenlab.stats.formulas.intervals import by_cluster, jackknife_of_sums, share_of_sums


@statistic
def calibration(source: Source, *, bins: int = 10, level: float = 0.95) -> xr.Dataset:
    """Acceptance rate of tested drafts by their probability under the draft head, [probability].

    tested, accepted   counts of drafts, all places of a round together, in bins of equal width; empty bins are left out
    conditional        conditional rate in the bin: accepted / tested
    mean_probability   of the drafts in the bin; equal to `conditional` if the head is calibrated
    calibration_error  mean over tested drafts of |conditional - mean_probability| of their bin (expected calibration
                       error: Guo et al. 2017, arXiv:1706.04599); above 0 by chance alone if drafts are few

    A policy that stops at a threshold of this probability is only as good as the probability predicts acceptance.

    level  of the intervals <name>_interval over whole prompts: of conditional `formulas.intervals.share`, a trial being
           a tested draft; of mean_probability `formulas.intervals.jackknife`

    Raises NothingMeasured if no tested draft has a probability, else as `acceptance`.
    """
    of_share, of_mean = share_method(level, "prompt"), jackknife_method(level, "prompt")
    integer("stats.calibration", "bins", bins, least=1, unit="bins of [0, 1]")
    data = read_rounds(source, "draft_probability")
    depth, probability = data.sizes["draft"], data["draft_probability"].values
    known = by_place(data["tested"], depth) & np.isfinite(probability)
    if not known.any():
        raise NothingMeasured(
            "No tested draft of this ledger has a draft_probability.\nUse a ledger of qwenlab.speculative."
        )
    index = np.minimum((np.where(known, probability, 0) * bins).astype(np.int64), bins - 1)
    some = np.unique(index[known])
    inside = known[..., None] & (index[..., None] == some)  # [round, draft, bin]
    accepted = inside & by_place(data["accepted"], depth)[..., None]
    weighed = np.where(inside, probability[..., None], 0)
    rows = np.concatenate([values.sum(axis=1) for values in (inside, accepted, weighed)], axis=1)
    sums = by_cluster(rows, data["prompt"].values)
    total, n = sums.sum(axis=0), len(some)
    rates, facts, dims = _rates(total), about(data), ("probability",)
    conditional = share_of_sums(sums, lambda s: _rates(s)[..., :n], sums[:, :n], level)
    mean = jackknife_of_sums(sums, lambda s: _rates(s)[..., n : 2 * n], sums[:, :n] > 0, level).clip(0, 1)
    shares = {
        "tested": Row(total[:n].astype(np.int64), dims, "draft", "tested"),
        "accepted": Row(total[n : 2 * n].astype(np.int64), dims, "draft", "accepted"),
        "conditional": Row(rates[:n], dims, "1", "conditional rate: accepted / tested", conditional),
    }
    meaning = "mean probability of the draft by the draft head"
    means = {
        "mean_probability": Row(rates[n : 2 * n], dims, "1", meaning, mean),
        "calibration_error": Row(rates[-1], (), "1", "calibration error: mean distance of the two"),
    }
    edges = {"units": "1", "long_name": "probability of the draft by the draft head, at least"}
    return xr.Dataset(
        variables(shares, facts, of_share) | variables(means, facts, of_mean),
        {"probability": ("probability", some / bins, edges)},
        facts | of_share | {"bins": bins, "sample": "{}"},
    )


def _rates(sums: np.ndarray) -> np.ndarray:
    """Conditional rate and mean probability by bin, then the calibration error, from sums [..., 3 bin]."""
    tested, accepted, weighed = np.split(sums, 3, axis=-1)
    error = np.abs(accepted - weighed).sum(axis=-1, keepdims=True) / tested.sum(axis=-1, keepdims=True)
    return np.concatenate([accepted / tested, weighed / tested, error], axis=-1)
