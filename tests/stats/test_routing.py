"""Certainty, company and turnover of routing, held to the tokens themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.testing.recordings import made
from qwenlab.testing.strategies import made_recordings

few = settings(max_examples=10)


def slow_entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


@few
@given(made_recordings(probes=["routing"]))
def test_per_token_means_by_loops(case):
    result = stats.routing(case.recording).isel(layer=1)
    k, tokens = case.routing.top_k, range(len(case.texts.position))
    probability, chosen = case.routing.probability[:, 1], case.routing.chosen[:, 1]
    weights = [probability[t, chosen[t]] / probability[t, chosen[t]].sum() for t in tokens]
    experts = probability.shape[-1]
    assert_allclose(result["entropy"], np.mean([slow_entropy(p) for p in probability]), rtol=1e-5)
    assert_allclose(result["entropy_share"], result["entropy"] / np.log(experts))
    assert_allclose(result["topk_entropy"], np.mean([slow_entropy(w) for w in weights]), rtol=1e-5, atol=1e-6)
    if k > 1:
        assert_allclose(result["topk_entropy_share"], result["topk_entropy"] / np.log(k))
    ranked = -np.sort(-probability, axis=-1)
    assert_allclose(result["margin"], (ranked[:, k - 1] - ranked[:, k]).mean(), rtol=1e-5, atol=1e-6)
    assert_allclose(result["shared_gate"], case.routing.shared_gate[:, 1].mean())
    assert_allclose(result["shared_share"], case.routing.shared_share[:, 1].mean())
    switched = [1 - len({*chosen[t]} & {*chosen[t - 1]}) / k for t in tokens if case.texts.position[t]]
    assert_allclose(result["switch_rate"], np.mean(switched))


def test_unrelated_neighbours_switch_as_often_as_chance():
    alone = dict(labels=["all"], sequences=64, length=64, specialisation=0.0, text_effect=0.0)
    loose = stats.routing(made(repeat=0.0, **alone).recording)
    tied = stats.routing(made(repeat=0.5, **alone).recording)
    assert_allclose(loose["switch_rate"], loose["chance_switch_rate"], atol=0.02)
    assert_allclose(tied["switch_rate"], tied["chance_switch_rate"] / 2, atol=0.03)


def test_without_a_shared_expert_its_columns_are_left_out():
    node = made().recording["routing"].drop_vars(["shared_gate_sum", "shared_share_sum"])
    assert not {"shared_gate", "shared_share"} & set(stats.routing(node))


@few
@given(made_recordings(probes=["routing"]))
def test_lift_is_observed_over_expected_and_counts_tokens(case):
    if case.routing.top_k < 2:
        return
    result = stats.coactivation(case.recording).isel(layer=0)
    chosen = case.routing.chosen[:, 0]
    both = sum(1 for row in chosen if 0 in row and 1 in row)
    assert result["observed"].sel(expert=0, expert_2=1) == both
    expected = float(result["expected"].sel(expert=0, expert_2=1))
    assert_allclose(result["lift"].sel(expert=0, expert_2=1), both / expected if expected else np.nan)
    assert_allclose(result["expected"].sum(), result["observed"].sum(), rtol=0.02)
    assert_allclose(result["lift"], result["lift"].transpose("expert_2", "expert"))
    assert np.isnan(np.diag(result["lift"])).all()


def test_experts_chosen_blindly_have_no_company():
    case = made(labels=["all"], sequences=200, length=64, layers=4, specialisation=0.0, text_effect=0.0, never_used=0)
    result = stats.coactivation(case.recording).isel(layer=0)
    noise = 4 / np.sqrt(result["expected"])
    assert (np.abs(result["lift"] - 1) < noise).where(result["lift"].notnull(), True).mean() > 0.97


def test_a_planted_pair_has_the_largest_lift():
    node = made(labels=["all"], sequences=64, length=64, top_k=2, never_used=0).recording["routing"]
    rng = np.random.default_rng(0)
    first = rng.integers(0, 16, 20_000)
    other = (first + rng.integers(1, 16, 20_000)) % 16
    other = np.where((first == 3) & (rng.random(20_000) < 0.5), 9, other)
    chose = np.zeros((20_000, 16))
    chose[np.arange(20_000), first] = chose[np.arange(20_000), other] = 1
    node = node.isel(layer=[0])
    node["coactivation"] = (("layer", "expert", "expert_2"), (chose.T @ chose)[None].astype(int))
    node["load"] = node["load"] * 0
    node["load"][0, 0, 0] = chose.sum(axis=0).astype(int)
    node["tokens"] = node["tokens"] * 0
    node["tokens"][0, 0, 0] = 20_000
    lift = stats.coactivation(node)["lift"].isel(layer=0)
    assert lift.sel(expert=3, expert_2=9) > 3
    assert lift.where(lift < 2).max() < 1.4


def test_one_expert_a_token_has_no_company():
    with pytest.raises(NothingMeasured, match="top_k=1"):
        stats.coactivation(made(top_k=1).recording)


@few
@given(made_recordings(probes=["routing"]))
def test_overlap_is_the_information_of_pairs_of_first_choices(case):
    result = stats.layer_overlap(case.recording, draws=2).isel(layer=0)
    a, b = case.routing.chosen[:, 0, 0], case.routing.chosen[:, 1, 0]
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    n, information = len(pairs), 0.0
    for x, y in set(pairs):
        p = pairs.count((x, y)) / n
        information += p * np.log2(p / ((a == x).mean() * (b == y).mean()))
    assert_allclose(result["information"], information, atol=1e-10)
    entropy = [slow_entropy([(z == x).mean() for x in set(z.tolist())]) / np.log(2) for z in (a, b)]
    if sum(entropy):
        assert_allclose(result["overlap"], information / np.mean(entropy), atol=1e-10)


def test_overlap_names_the_next_layer_and_leaves_out_the_last():
    result = stats.layer_overlap(made().recording)
    assert result["layer"].values.tolist() == list(range(7))
    assert result["layer_next"].values.tolist() == list(range(1, 8))


def test_overlap_beyond_chance_is_zero_for_unrelated_layers_only():
    alone = dict(labels=["all"], sequences=32, length=48, specialisation=0.0, text_effect=0.0, repeat=0.0)
    loose = stats.layer_overlap(made(correlation=0.0, **alone).recording)
    tied = stats.layer_overlap(made(correlation=0.9, **alone).recording)
    assert_allclose(loose["adjusted_overlap"], 0, atol=0.01)
    assert (loose["overlap"] > 0.01).all()  # what plug-in says of nothing: the bias that is taken out
    assert (tied["adjusted_overlap"] > 0.1).all()


@pytest.mark.parametrize(
    ("function", "variable", "message"),
    [
        (stats.coactivation, "coactivation", "rows of coactivation do not add up"),
        (stats.layer_overlap, "transition", "transition does not count every token"),
        (stats.routing, "load", "do not add up to top_k=4"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(function, variable, message):
    node = made().recording["routing"]
    node[variable] = node[variable] + 1
    with pytest.raises(InconsistentRecording, match=message):
        function(node)


def test_a_node_without_top_k_is_refused():
    node = made().recording["routing"]
    del node.attrs["top_k"]
    with pytest.raises(InconsistentRecording, match="lacks its attribute top_k"):
        stats.routing(node)


def test_overlap_of_one_layer_is_refused():
    with pytest.raises(NothingMeasured, match="two routed layers"):
        stats.layer_overlap(made().recording["routing"].isel(layer=[0]))
