"""Reach of heads of both kinds of mixer: the same statistics for implicit and softmax attention."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from qwenlab.stats.base.source import Source, mixer_nodes, ratio, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates, histogram_quantiles, join_layers, share
from qwenlab.stats.base.variables import described, result

HORIZONS = (0.5, 0.9)
"""Default shares of the mass whose distance is a head's horizon."""

_MEANS = {
    "first_mass": Estimate("1", "mass on the first token", 1),
    "first_even": Estimate("1", "the same of uniform weights", 1),
    "previous_mass": Estimate("1", "mass on the token before", 1),
    "self_mass": Estimate("1", "mass on the token itself", 1),
    "distance": Estimate("token", "mean distance of the mass"),
    "entropy": Estimate("nat", "entropy of the mass"),
    "negative": Estimate("1", "share of negative weight", 1),
    "mass": Estimate("1", "sum of |weight|"),
    "mean_gate": Estimate("1", "mean value of the output gate", 1),
    "induction": Estimate("1", "mass on what came after the same token", 1, over="induction_rows"),
    "induction_even": Estimate("1", "the same of uniform weights", 1, over="induction_rows"),
    "induction_lift": Estimate(
        "1",
        "induction over that of uniform weights",
        sums=("induction_sum", "induction_even_sum"),
        over="induction_rows",
    ),
    "output_first": Estimate(
        "1", "share of the output from the first token, gate off", 1, over="output_sum", counts="tokens"
    ),
    "gated_output_first": Estimate(
        "1", "share of the output from the first token, gate on", 1, over="gated_output_sum", counts="tokens"
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
    """Distances and shares of the mass of every head's attention rows, implicit for DeltaNet, softmax for attention.

    A row of a head has weights w(t, s), s <= t: in DeltaNet the signed ones of `probes.ImplicitAttention`, in attention
    the probabilities. Its mass is |w(t, s)| / sum over s of |w(t, s)|. Means over rows by [layer, head], layers of both
    kinds in the model's order, each with its interval; NaN for heads that a layer does not have.

    horizon           [.., share] distance, in tokens, that contains that share of the mass, over all rows; exact up to
                      4 tokens, then within a bin of half an octave
    first_mass        mass on the sequence's first token;  previous_mass on the token before;  self_mass on its own
    first_even        mean of 1 / (t + 1): the first token's mass for uniform weights
    distance          mean distance of the mass, tokens
    entropy           -sum of m ln m over a row's mass m, nats: ln of its effective number of tokens
    induction         mass on the tokens s < t whose own predecessor is the same token as t, over the rows that have
                      such tokens: attention to what followed earlier occurrences (Olsson et al. 2022, arXiv:2209.11895)
    induction_even    share of such tokens among the tokens of the row: the same for uniform weights
    induction_lift    induction over induction_even: 1 if the head treats such tokens like any others
    negative          mass of negative weight (NaN for attention, which has none)
    mass              sum of |w|: 1 for attention
    output_first      the first token's share of the norms |w(t, s)| ||v_s||, summed over rows: how much of the output
                      comes from the sink
    gated_output_first  the same of |w(t, s)| ||sigmoid(gate_t) * v_s||: with the output gate on (attention only)
    mean_gate         value of attention's output gate, mean over channels and tokens
    mass_share        [.., distance_bin] share of the mass by distance
    reconstruction_error  ||sum of w v - o|| / ||o|| over rows: o is the DeltaNet head's output from the kernel
    without_removal_error  the same for weights with decay but without the removal of keys, if the probe computed them

    All of these depend on context length: compare only over the same texts.
    """
    nodes = mixer_nodes(source, ("implicit_attention", "softmax_attention"), "gated_output_sum")
    return join_layers([_of_kind(source, name, horizons, by_label, level) for name in nodes])


def _of_kind(source: Source, node: str, horizons: Sequence[float], by_label: bool, level: float) -> xr.Dataset:
    needs = ("tokens", "distance_mass", "induction_sum", "induction_rows", "output_sum", "first_mass_sum")
    data = read(source, node, *needs, by_label=by_label)
    mass = data["distance_mass"]

    def horizon(by_distance: xr.DataArray) -> xr.DataArray:
        return histogram_quantiles(by_distance, "distance_bin", "octave", horizons, "horizons").rename(quantile="share")

    meaning = "distance that holds this share of the mass"
    table = {"horizon": Estimate("token", meaning, sums=("distance_mass",), of=horizon)} | _MEANS
    variables = estimates(data, table, level)
    variables["mass_share"] = described(share(mass.sum("fold"), "distance_bin"), "share of mass", "mass by distance")
    for name, (gap, long_name) in _ERRORS.items():
        if gap in data:
            error = ratio(data[gap].sum("fold"), data["out_square_sum"].sum("fold")) ** 0.5
            variables[name] = described(error, "1", long_name)
    return result(data, variables)
