"""How far back heads of both kinds reach, told in the same words: implicit attention beside softmax attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.record.recording import Recording
from qwenlab.stats.formulas.quantiles import whole_quantiles
from qwenlab.stats.source import (
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

HORIZONS = (0.5, 0.9)
"""The shares of the mass by whose distance a head's horizon is told."""

_NODES = ("implicit_attention", "softmax_attention")

_MEANS = {
    "first_mass": ("1", "mass on the first token", 1.0),
    "previous_mass": ("1", "mass on the token before", 1.0),
    "self_mass": ("1", "mass on the token itself", 1.0),
    "distance": ("token", "mean distance of the mass", np.inf),
    "entropy": ("nat", "entropy of the mass", np.inf),
    "negative": ("1", "share of negative weight", 1.0),
    "mass": ("1", "sum of |weight|", np.inf),
    "openness": ("1", "openness of the output gate", 1.0),
}

_INDUCTION = {
    "induction": "mass on what came after the same token",
    "induction_even": "the same of even weights",
}

_OF_OUTPUT = {
    "output": ("output_first", "share of the output from the first token, gate off"),
    "gated_output": ("gated_output_first", "share of the output from the first token, gate on"),
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
    distance          mean distance of the mass, tokens
    entropy           -sum of m ln m over a row's mass m, nats: ln of its effective number of tokens
    induction         mass on the tokens s < t whose own predecessor is the same token as t, over the rows that have
                      such: attention to what came next the last times (Olsson et al. 2022, arXiv:2209.11895)
    induction_even    the share of those among the tokens of the row: what even weights would give
    negative          mass of negative weight (NaN for attention, which has none)
    mass              sum of |w|: 1 for attention
    output_first      share of the norms |w(t, s)| ||v_s||, summed over rows, that is the first token's: how much of the
                      output the sink makes
    gated_output_first  the same of |w(t, s)| ||sigmoid(gate_t) * v_s||: with the output gate on (attention only)
    openness          of attention's output gate, mean over tokens
    mass_share        [.., distance_bin] share of the mass by distance
    reconstruction_error  ||sum of w v - o|| / ||o|| over rows: o is the DeltaNet head's output as the kernel gave it

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
    means = [
        *((name, data[f"{name}_sum"], tokens, *told) for name, told in _MEANS.items() if f"{name}_sum" in data),
        *((name, data[f"{name}_sum"], rows, "1", meaning, 1.0) for name, meaning in _INDUCTION.items()),
        *(
            (name, data[f"{name}_sum"], data[f"{whole}_sum"], "1", meaning, 1.0)
            for whole, (name, meaning) in _OF_OUTPUT.items()
            if f"{whole}_sum" in data
        ),
    ]
    for name, total, whole, units, meaning, most in means:
        count = rows if whole is rows else tokens
        variables |= estimated(
            name, ratio, (total, whole), count, units=units, long_name=meaning, level=level, within=(0, most)
        )
    variables["mass_share"] = described(share(mass.sum("fold"), "distance_bin"), "share of mass", "mass by distance")
    if "gap_square_sum" in data:
        error = ratio(data["gap_square_sum"].sum("fold"), data["out_square_sum"].sum("fold")) ** 0.5
        variables["reconstruction_error"] = described(error, "1", "distance from the kernel's output, relative to it")
    return result(data, variables)
