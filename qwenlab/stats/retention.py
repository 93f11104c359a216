"""How much of a stored key-value pair DeltaNet states still return."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import MeanSum, means
from qwenlab.stats.base.variables import described, result

_MEANS = {
    "recall": MeanSum("1", "value returned", least=-np.inf, over="pairs"),
    "before": MeanSum("1", "value returned before it was stored", least=-np.inf, over="pairs"),
    "survival": MeanSum("1", "part of a stored value that is left", least=-np.inf, over="added", counts="pairs"),
    "decay_alone": MeanSum("1", "part of a stored value that decay alone leaves", over="added", counts="pairs"),
    "overwritten": MeanSum("1", "overwritten part of a stored value", least=-np.inf, over="added", counts="pairs"),
    "error": MeanSum("1", "retrieval error", over="pairs"),
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

    by  "distance": octaves of the tokens since (`distance_bin`); "writes": of the write strengths since, summed
        (`writes_bin`): how many pairs were stored in between; None: no bins, all queried pairs, of which each octave
        of distance has about as many

    recall       mean of <S_t^T k_s, v_s> / ||v_s||^2: the part of the value that the state returns; 1: all
    before       the same just before the pair was stored: what the state returns of a pair that it does not hold, where
                 keys are alike and values have a part in common
    survival     the rest of what storing the pair added: (recall - before) / (written - before), written being the
                 recall right after, each summed over pairs. 1 at first, 0 where the state knows no more than before
    decay_alone  the same had no later token written: what decay leaves
    overwritten  decay_alone - survival: the part that later writes to similar keys took (negative: they added)
    error        mean of ||S_t^T k_s - v_s|| / ||v_s||, the retrieval error: other pairs under similar keys are in it
    pairs        how many pairs were queried

    All but the last with intervals. Survival can stay above 0 where a text writes the same again.

    Source: S <- alpha S; S <- S + k (beta (v - S^T k))^T in Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), whose
    second step removes what similar keys had stored (Schlag et al. 2021, arXiv:2102.11174).
    """
    if by not in ("distance", "writes", None):
        raise BadArgument(f"by={by!r}: choose 'distance', 'writes' or None.")
    binned = by or "distance"
    names = [f"{name}_by_{binned}" for name in ("recall", "before", "written", "decayed", "error", "pairs")]
    data = read(source, "retention", "tokens", *names, by_label=by_label)
    data = data if by else data.sum(f"{binned}_bin", keep_attrs=True)
    recall, before, written, decayed, error, pairs = (data[name] for name in names)
    left, added = recall - before, written - before
    sums = {"recall_sum": recall, "before_sum": before, "error_sum": error, "added": added, "pairs": pairs}
    sums |= {"survival_sum": left, "decay_alone_sum": decayed, "overwritten_sum": decayed - left}
    variables = means(sums, _MEANS, level)
    variables["pairs"] = described(pairs.sum("fold"), "pair", "queried pairs")
    return result(data, variables)
