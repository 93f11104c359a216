"""Whether the head's probabilities mean what they say: those of its drafts, against how often drafts are accepted."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.base.rounds import Bootstrap, about, bootstrap, places, read_rounds, said
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.formulas.resampling import by_cluster


@statistic
def calibration(
    source: Source, *, bins: int = 10, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """How often a tested draft is accepted, by the probability [probability] that the head gave it.

    tested, accepted   counts of drafts, all places of a round together, in bins of equal width; empty bins are left out
    conditional        conditional rate in the bin: accepted / tested
    mean_probability   of the drafts in the bin; where the head is calibrated the two are equal
    calibration_error  mean over tested drafts of |conditional - mean_probability| of their bin (expected calibration
                       error: Guo et al. 2017, arXiv:1706.04599); above 0 by chance alone where drafts are few

    A policy that stops at a threshold of this probability is worth as much as it tells acceptance. Under the rule
    greedy, accepted means equal to the main model's first choice.

    level  of the intervals <name>_interval: percentile bootstrap, whole prompts drawn with replacement

    Raises BadArgument, NothingMeasured where no tested draft has a probability, else as `acceptance`.
    """
    how = Bootstrap(level, resamples, seed)
    if bins < 1:
        raise BadArgument(f"bins={bins!r}: give how many bins to part [0, 1] into, such as 10.")
    data = read_rounds(source, "draft_probability")
    depth, probability = data.sizes["draft"], data["draft_probability"].values
    known = places(data["tested"], depth) & np.isfinite(probability)
    if not known.any():
        raise NothingMeasured(
            "No tested draft of this ledger has a draft_probability.\nTake one that qwenlab.speculative made."
        )
    index = np.minimum((np.where(known, probability, 0) * bins).astype(np.int64), bins - 1)
    held = np.unique(index[known])
    inside = known[..., None] & (index[..., None] == held)  # [round, draft, bin]
    accepted = inside & places(data["accepted"], depth)[..., None]
    weighed = np.where(inside, probability[..., None], 0)
    rows = np.concatenate([each.sum(axis=1) for each in (inside, accepted, weighed)], axis=1)
    sums = by_cluster(rows, data["prompt"].values)
    total, ends = sums.sum(axis=0), how.interval(sums, _rates)
    counts, rates = np.split(total, 3)[:2], _rates(total)
    say, dims, n = about(data), ("probability",), len(held)
    variables = {
        "tested": said(counts[0].astype(np.int64), dims, "draft", "tested", say),
        "accepted": said(counts[1].astype(np.int64), dims, "draft", "accepted", say),
    }
    for name, means, span in (
        ("conditional", "conditional rate: accepted / tested", slice(0, n)),
        ("mean_probability", "mean probability of the draft by the head", slice(n, 2 * n)),
    ):
        variables |= bootstrap(name, rates[span], ends[span], dims, "1", means, say, how)
    variables["calibration_error"] = said(rates[-1], (), "1", "calibration error: mean distance of the two", say)
    out = xr.Dataset(variables, {"probability": held / bins})
    out["probability"].attrs.update(units="1", long_name="probability of the draft by the head, at least")
    return out.assign_attrs(say | how.attrs | {"bins": bins, "sample": "{}"})


def _rates(sums: np.ndarray) -> np.ndarray:
    """Conditional rate and mean probability by bin, then the calibration error, of sums [..., 3 bin]."""
    tested, accepted, weighed = np.split(sums, 3, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(accepted - weighed).sum(axis=-1, keepdims=True) / tested.sum(axis=-1, keepdims=True)
        return np.concatenate([accepted / tested, weighed / tested, error], axis=-1)
