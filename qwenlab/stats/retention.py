"""Retention of stored key-value pairs by DeltaNet states."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.arguments import choice
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import described, result

_PAIRS = {
    "recall": Estimate("1", "value returned", least=-np.inf, over="pairs"),
    "before": Estimate("1", "value returned before it was stored", least=-np.inf, over="pairs"),
    "survival": Estimate("1", "part of a stored value that is left", least=-np.inf, over="added", counts="pairs"),
    "decay_alone": Estimate("1", "part of a stored value that decay alone leaves", over="added", counts="pairs"),
    "overwritten": Estimate("1", "overwritten part of a stored value", least=-np.inf, over="added", counts="pairs"),
    "error": Estimate("1", "retrieval error", over="pairs"),
}


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
