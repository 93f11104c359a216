"""Certainty of routing, how often it switches experts, and which experts are chosen together."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.stats.base.source import RECORD_AGAIN, Source, along, ratio, read, statistic
from qwenlab.stats.base.sums import MeanSum, estimated, means
from qwenlab.stats.base.variables import described, result, variables as described_all
from qwenlab.stats.experts import checked_load
from qwenlab.stats.formulas import experts as formulas
from qwenlab.stats.formulas.information import entropy, independent_information, mutual_information

_BITS = 1 / np.log(2)


@statistic
def routing(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Certainty of the routing of a token, and how often it changes: means by [layer], with intervals.

    entropy             of the router's softmax over all E experts, nats; entropy_share: over ln E
    topk_entropy        of the k renormalised weights, nats; topk_entropy_share: over ln k. Not comparable with
                        `entropy`: it ignores the experts that were not chosen.
    margin              probability of the k-th expert minus that of the (k+1)-th
    switch_rate         share of a token's k experts that the token before did not have
    chance_switch_rate  the same for independent neighbours: 1 - sum of p^2 / k, p the share of tokens that chose the
                        expert, over all labels that are added up
    shared_gate         sigmoid of the shared expert's gate; only if there is a shared expert
    shared_share        norm of its output over that norm plus the routed output's; likewise
    """
    needs = ("entropy_sum", "topk_entropy_sum", "margin_sum", "kept_sum", "pairs", "load", "tokens")
    data = read(source, "routing", *needs, "measured", by_label=by_label)
    load, tokens, pairs = checked_load(data), data["tokens"], data["pairs"]
    top_k = _top_k(data)

    def by_chance(chosen: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        return 1 - along(["expert"], formulas.repeated_if_independent, ratio(chosen, n)) / top_k

    least, most = np.log(top_k), np.log(data.sizes["expert"])
    sums = {**data, "entropy_share_sum": data["entropy_sum"] / most}
    sums["topk_entropy_share_sum"] = data["topk_entropy_sum"] / (least or np.nan)
    table = {
        "entropy": MeanSum("nat", "entropy of the router, all experts", most, over="measured"),
        "entropy_share": MeanSum("share of ln E", "entropy of the router, all experts", 1, over="measured"),
        "topk_entropy": MeanSum("nat", "entropy of the top-k weights", least, over="measured"),
        "topk_entropy_share": MeanSum("share of ln k", "entropy of the top-k weights", 1, over="measured"),
        "margin": MeanSum("1", "margin of the k-th expert", 1, over="measured"),
        "shared_gate": MeanSum("1", "gate of the shared expert", 1, over="measured"),
        "shared_share": MeanSum("1", "share of the shared expert", 1, over="measured"),
    }
    how: dict[str, Any] = dict(units="share of experts", level=level, within=(0, 1))
    before, unrelated = "experts the token before did not have", "the same between unrelated tokens"
    repeated, chose = (data["kept_sum"], pairs), (load, tokens)
    variables = {
        **means(sums, table, level),
        **estimated(
            "switch_rate", lambda sum_, n: 1 - ratio(sum_, top_k * n), repeated, pairs, long_name=before, **how
        ),
        **estimated("chance_switch_rate", by_chance, chose, tokens, long_name=unrelated, **how),
    }
    return result(data, variables)


@statistic
def coactivation(source: Source) -> xr.Dataset:
    """Co-activation of two experts relative to independent choices, by [layer, expert, expert_2].

    lift      observed / expected; 1 by chance, NaN on the diagonal and for unused experts
    observed  tokens that chose both
    expected  the same if experts were chosen independently given their loads: the table with these loads, k different
              experts per token and no other preference (quasi-independence). The plain product of two shares would
              overstate every pair, since a token's k experts always differ: for uniform loads, by the factor
              k (E - 1) / ((k - 1) E).

    If `expected` is small, lift is noise: its relative error by chance is about 1 / sqrt(expected).
    """
    data = read(source, "routing", "coactivation", "load", "tokens", by_label=False)
    top_k = _top_k(data)
    if top_k < 2:
        raise NothingMeasured("Each token is routed to one expert (top_k=1): no two experts are ever chosen together.")
    together = data["coactivation"]
    if not bool((together.sum("expert_2") == top_k * checked_load(data).sum("fold")).all()):
        raise InconsistentRecording(
            f"The rows of coactivation do not add up to top_k times the expert's load.\n{RECORD_AGAIN}"
        )
    load = data["load"].sum("fold")
    expected = xr.apply_ufunc(
        formulas.independent_pairs,
        load,
        input_core_dims=[["expert"]],
        output_core_dims=[["expert", "expert_2"]],
        exclude_dims={"expert"},
        kwargs={"top_k": top_k},
    ).assign_coords(expert=data["expert"], expert_2=data["expert_2"])
    other = data["expert"] != data["expert_2"]
    variables = {
        "lift": described((together / expected.where(expected > 0)).where(other), "1", "co-activation over chance"),
        "observed": described(together.where(other), "token", "tokens that chose both experts"),
        "expected": described(expected.where(other), "token", "tokens that chose both, by chance"),
    }
    return result(data, variables)


@statistic
def layer_overlap(source: Source, *, draws: int = 20, seed: int = 0) -> xr.Dataset:
    """Mutual information between a token's first experts in one routed layer and the next, by [layer].

    information              mutual information of the two, bits (plug-in)
    information_independent  its bias: the same for unrelated choices with the same loads and number of tokens, mean of
                             `draws` random tables with the same margins (seed)
    overlap                  information over the mean of the two entropies: 0 unrelated, 1 equal up to renumbering
    overlap_independent      its bias, likewise
    adjusted_overlap         (overlap - its bias) / (1 - its bias): 0 by chance (Vinh et al. 2010, JMLR 11:2837)

    The last routed layer has no next one and is left out; `layer_next` is the next routed layer. Tokens of a text
    resemble one another, so a small adjusted overlap alone is not evidence of one.
    """
    data = read(source, "routing", "transition", "tokens", by_label=False)
    if data.sizes["layer"] < 2:
        raise NothingMeasured("Overlap needs two routed layers, and one was watched.\nLeave out Routing's `layers`.")
    first = {"layer": slice(None, -1)}
    counts, tokens = data["transition"].isel(first), data["tokens"].sum("fold").isel(first)
    if not bool((counts.sum(["expert", "expert_next"]) == tokens).all()):
        raise InconsistentRecording(f"transition does not count every token once per layer.\n{RECORD_AGAIN}")
    tables = counts.transpose("layer", "expert", "expert_next").values
    rng = np.random.default_rng(seed)
    by_chance = np.array([independent_information(table, draws, rng).mean() for table in tables])
    information = mutual_information(tables)
    scale = (entropy(tables.sum(axis=-1)) + entropy(tables.sum(axis=-2))) / 2
    scale = np.where(scale > 0, scale, np.nan)
    overlap, bias = information / scale, by_chance / scale
    over, unrelated = ("layer",), "the same for unrelated choices"
    table = {
        "information": (information * _BITS, over, "bit", "information on the next layer's first expert"),
        "information_independent": (by_chance * _BITS, over, "bit", unrelated),
        "overlap": (overlap, over, "share of entropy", "overlap with the next layer's first expert"),
        "overlap_independent": (bias, over, "share of entropy", unrelated),
        "adjusted_overlap": ((overlap - bias) / (1 - bias), over, "1", "overlap beyond chance"),
    }
    at = counts["layer"].coords | {"layer_next": ("layer", data["layer"].values[1:])}
    return result(data, described_all(table)).assign_coords(at).assign_attrs(draws=draws, seed=seed)


def _top_k(data: xr.Dataset) -> int:
    if "top_k" not in data.attrs:
        raise InconsistentRecording("The routing node lacks its attribute top_k, the number of experts per token.")
    return int(data.attrs["top_k"])
