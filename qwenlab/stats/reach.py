"""How far back heads of both kinds reach, told in the same words: implicit attention beside softmax attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.record.recording import Recording
from qwenlab.stats.base.source import (
    Source,
    described,
    estimated,
    ratio,
    read,
    result,
    share,
    sketched,
    statistic,
)
from qwenlab.stats.formulas.quantiles import whole_quantiles

HORIZONS = (0.5, 0.9)
"""The shares of the mass by whose distance a head's horizon is told."""

_NODES = ("implicit_attention", "softmax_attention")

_MEANS = {
    "first_mass": ("1", "mass on the first token", 1.0),
    "first_even": ("1", "the same of even weights", 1.0),
    "previous_mass": ("1", "mass on the token before", 1.0),
    "self_mass": ("1", "mass on the token itself", 1.0),
    "distance": ("token", "mean distance of the mass", np.inf),
    "entropy": ("nat", "entropy of the mass", np.inf),
    "negative": ("1", "share of negative weight", 1.0),
    "mass": ("1", "sum of |weight|", np.inf),
    "openness": ("1", "openness of the output gate", 1.0),
}

_RATIOS = {
    "induction": ("induction", "induction_rows", "mass on what came after the same token", 1.0),
    "induction_even": ("induction_even", "induction_rows", "the same of even weights", 1.0),
    "induction_lift": ("induction", "induction_even", "induction over that of even weights", np.inf),
    "output_first": ("output_first", "output", "share of the output from the first token, gate off", 1.0),
    "gated_output_first": (
        "gated_output_first",
        "gated_output",
        "share of the output from the first token, gate on",
        1.0,
    ),
}

_ERRORS = {
    "reconstruction_error": ("gap_square_sum", "distance from the kernel's output, relative to it"),
    "without_removal_error": ("without_removal_gap_square_sum", "the same of weights without key removal"),
}


@statistic
def reach(
    source: Source, *, horizons: Sequence[float] = HORIZONS, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """How far back every head reaches: DeltaNet heads by their implicit attention, attention heads by their softmax.

    A row of a head has weights w(t, s), s <= t: of DeltaNet the signed ones of `probe.ImplicitAttention`, of attention
    the probabilities. Its mass is |w(t, s)| / sum over s of |w(t, s)|. Means over rows by [layer, head], the layers of
    both kinds in the trunk's order, each with its interval; NaN for heads that a layer does not have.

    horizon           [.., share] distance, in tokens, within which that share of the mass lies, over all rows; exact
                      up to 4 tokens, then within a bin of half an octave
    first_mass        mass on the sequence's first token;  previous_mass on the token before;  self_mass on its own
    first_even        mean of 1 / (t + 1): the first token's mass if all weights of a row were even
    distance          mean distance of the mass, tokens
    entropy           -sum of m ln m over a row's mass m, nats: ln of its effective number of tokens
    induction         mass on the tokens s < t whose own predecessor is the same token as t, over the rows that have
                      such: attention to what came next the last times (Olsson et al. 2022, arXiv:2209.11895)
    induction_even    the share of those among the tokens of the row: what even weights would give
    induction_lift    induction over induction_even: 1 where the head does not know such tokens from others
    negative          mass of negative weight (NaN for attention, which has none)
    mass              sum of |w|: 1 for attention
    output_first      share of the norms |w(t, s)| ||v_s||, summed over rows, that is the first token's: how much of the
                      output the sink makes
    gated_output_first  the same of |w(t, s)| ||sigmoid(gate_t) * v_s||: with the output gate on (attention only)
    openness          of attention's output gate, mean over tokens
    mass_share        [.., distance_bin] share of the mass by distance
    reconstruction_error  ||sum of w v - o|| / ||o|| over rows: o is the DeltaNet head's output as the kernel gave it
    without_removal_error  the same of weights with decay but without the removal of keys, where the probe made those

    All change with the length of what was read: compare over the same texts.
    """
    wanted = np.asarray(horizons, np.float64)
    if wanted.ndim != 1 or not ((wanted > 0) & (wanted < 1)).all():
        raise BadArgument(f"horizons={horizons!r}: give shares between 0 and 1, both excluded, such as {HORIZONS}.")
    watched = [name for name in _NODES if name in source] if isinstance(source, Recording) else [_node(source)]
    nodes = [_of_kind(source, name, horizons, by_label, level) for name in watched or _NODES[:1]]
    joined = xr.concat(nodes, "layer", data_vars="all", coords="different", compat="equals", join="outer")
    return joined.sortby("layer")


def _node(data: xr.Dataset) -> str:
    return _NODES[1] if "gated_output_sum" in data else _NODES[0]


def _of_kind(source: Source, node: str, horizons: Sequence[float], by_label: bool, level: float) -> xr.Dataset:
    needed = ("tokens", "distance_mass", "induction_sum", "induction_rows", "output_sum", "first_mass_sum")
    data = read(source, node, *needed, by_label=by_label)
    mass, tokens = data["distance_mass"], data["tokens"]

    def horizon(by_distance: xr.DataArray) -> xr.DataArray:
        at = sketched(whole_quantiles, by_distance, "distance_bin", "octave", horizons)
        return at.rename(quantile="share")

    long_name = "distance that holds this share of the mass"
    variables = estimated(
        "horizon", horizon, [mass], tokens, units="token", long_name=long_name, level=level, within=(0, np.inf)
    )
    rows = data["induction_rows"]
    sums = {name.removesuffix("_sum"): data[name] for name in map(str, data) if name.endswith("_sum")}
    sums["induction_rows"] = rows
    means = [(name, (sums[name], tokens), *told) for name, told in _MEANS.items() if name in sums]
    means += [
        (name, (sums[part], sums[whole]), "1", meaning, most)
        for name, (part, whole, meaning, most) in _RATIOS.items()
        if part in sums
    ]
    for name, parts, units, meaning, most in means:
        count = rows if name.startswith("induction") else tokens
        variables |= estimated(name, ratio, parts, count, units=units, long_name=meaning, level=level, within=(0, most))
    variables["mass_share"] = described(share(mass.sum("fold"), "distance_bin"), "share of mass", "mass by distance")
    for name, (gap, long_name) in _ERRORS.items():
        if gap in data:
            error = ratio(data[gap].sum("fold"), data["out_square_sum"].sum("fold")) ** 0.5
            variables[name] = described(error, "1", long_name)
    return result(data, variables)
