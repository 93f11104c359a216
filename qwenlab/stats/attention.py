"""Attention of heads by distance: mean distance, entropy, mass on the first, previous and own token."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import QUANTILES, Estimate, distribution, estimates
from qwenlab.stats.base.variables import described, result

_MEANS = {
    "distance": Estimate("token", "mean attention distance"),
    "entropy": Estimate("nat", "entropy of the attention row"),
    "first_mass": Estimate("1", "attention on the first token", 1),
    "previous_mass": Estimate("1", "attention on the token before", 1),
    "self_mass": Estimate("1", "attention on the token itself", 1),
}


@statistic
def attention_distance(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """Attention distance, entropy and special masses: means over queries by [layer, head], with intervals.

    distance           mean over queries of the row's mean distance back, tokens (0: the query's own token)
    distance_quantile  [.., quantile] distance that contains that share of all attention mass; exact up to 4 tokens,
                       then within a bin of half an octave
    distance_share     [.., distance_bin] share of the mass in each bin
    entropy            of the attention row, nats: ln of its effective number of tokens
    first_mass         probability on the sequence's first token (the usual sink)
    previous_mass      on the token before;  self_mass  on the query's own token

    All of these depend on context length: compare only over the same texts.
    """
    sums = [f"{name}_sum" for name in _MEANS]
    data = read(source, "attention", "tokens", "distance_mass", *sums, by_label=by_label)
    tokens, within, by_distance = distribution(data, "distance_mass", "distance_bin", "octave", quantiles)
    variables = {
        **estimates({**data, "tokens": tokens}, _MEANS, level),
        "distance_quantile": described(within, "token", "distance that holds this share of attention", scale="log2"),
        "distance_share": described(by_distance, "share of attention", "attention by distance"),
    }
    return result(data, variables)
