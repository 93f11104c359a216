"""Where attention heads look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.stats.base.source import (
    QUANTILES,
    Source,
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
from qwenlab.stats.formulas.quantiles import whole_quantiles


@statistic
def attention_distance(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """Where attention heads look: means over queries by [layer, head], with intervals.

    distance           mean over queries of the row's mean distance back, tokens (0: the query's own token)
    distance_quantile  [.., quantile] distance within which that share of all the attention mass lies; exact up to
                       4 tokens, then within a bin of half an octave
    distance_share     [.., distance_bin] share of the mass in each bin
    entropy            of the attention row, nats: ln of its effective number of tokens
    first_mass         probability on the sequence's first token (the usual sink)
    previous_mass      on the token before;  self_mass  on the query's own token

    All grow or shrink with the length of what was read: compare only over the same texts.
    """
    names = ("entropy_sum", "first_mass_sum", "previous_mass_sum", "self_mass_sum", "distance_sum")
    data = read(source, "attention", "tokens", "distance_mass", *names, by_label=by_label)
    mass = data["distance_mass"]
    tokens = measured(data["tokens"], mass, "distance_bin")
    means = (
        ("distance", "token", "mean attention distance", (0, np.inf)),
        ("entropy", "nat", "entropy of the attention row", (0, np.inf)),
        ("first_mass", "1", "attention on the first token", (0, 1)),
        ("previous_mass", "1", "attention on the token before", (0, 1)),
        ("self_mass", "1", "attention on the token itself", (0, 1)),
    )
    variables: dict[str, xr.DataArray] = {}
    for name, units, long_name, within in means:
        sums = (data[f"{name}_sum"], tokens)
        variables |= estimated(name, ratio, sums, tokens, units=units, long_name=long_name, level=level, within=within)
    reach = sketched(whole_quantiles, mass, "distance_bin", "octave", quantiles)
    what = "distance that holds this share of attention"
    variables["distance_quantile"] = described(reach, "token", what, scale="log2")
    by_distance = share(mass, "distance_bin")
    variables["distance_share"] = described(by_distance, "share of attention", "attention by distance")
    return result(data, variables)
