"""Load, windows and never-used experts, held to the tokens themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import BadArgument, InconsistentRecording
from qwenlab.testing.recordings import made
from qwenlab.testing.strategies import made_recordings

few = settings(max_examples=10)


@few
@given(made_recordings(probes=["routing"]))
def test_load_is_counted_slot_by_slot(case):
    result = stats.expert_load(case.recording)
    experts = case.routing.probability.shape[-1]
    for layer in range(len(result["layer"])):
        slots = case.routing.chosen[:, layer].ravel().tolist()
        share = np.array([slots.count(expert) / len(slots) for expert in range(experts)])
        assert_allclose(result["share"][layer], share)
        assert_allclose(result["variation"][layer], share.std() / share.mean())
        entropy = -sum(p * np.log(p) for p in share if p)
        assert_allclose(result["normalised_entropy"][layer], entropy / np.log(experts), atol=1e-12)
    assert_allclose(result["even_share"], 1 / experts)


def test_weight_share_is_of_the_renormalised_weights():
    case = made()
    weight = np.where(case.routing.chose, case.routing.probability, 0)
    weight /= weight.sum(axis=-1, keepdims=True)
    assert_allclose(stats.expert_load(case.recording)["weight_share"], weight.mean(axis=0), rtol=1e-6)


def test_intervals_are_wide_enough_for_texts_that_differ():
    """Two halves of the texts differ as the interval predicts, though tokens of a text resemble one another."""
    inside = []
    for seed in range(12):
        case = made(seed=seed, labels=["all"], sequences=48, layers=4, text_effect=1.0, specialisation=0)
        halves = [case.texts.sequence < 24, case.texts.sequence >= 24]
        share = [case.routing.chose[half].mean(axis=0) / case.routing.top_k for half in halves]
        result = stats.expert_load(case.recording)["share_interval"]
        width = (result.sel(bound="high") - result.sel(bound="low")).values / 2
        # A difference of halves has twice the error of the mean.
        inside.append(np.abs(share[0] - share[1]) <= 2 * width)
    assert 0.9 < np.mean(inside) < 0.99


@few
@given(made_recordings(probes=["routing"]))
def test_distinct_experts_of_windows_by_loops(case):
    result = stats.distinct_experts(case.recording)
    chosen, position = case.routing.chosen[:, 0], case.texts.position
    share = case.routing.chose[:, 0].mean(axis=0)
    for size in (2, 4, 8):
        ends = np.flatnonzero((position + 1) % size == 0)
        counts = [len(set(chosen[end - size + 1 : end + 1].ravel())) for end in ends]
        expected = np.mean(counts) if counts else np.nan
        alone = (1 - (1 - share) ** size).sum()
        at = result.sel(window=size).isel(layer=0)
        assert_allclose(at["distinct"], expected)
        assert_allclose(at["independent"], alone)
        assert_allclose(at["relative"], expected / alone)


def test_independent_tokens_need_the_expected_number_of_experts_and_repeating_ones_fewer():
    alone = dict(labels=["all"], sequences=64, length=64, specialisation=0.0, text_effect=0.0)
    loose = stats.distinct_experts(made(repeat=0.0, **alone).recording)["relative"].sel(window=8)
    tied = stats.distinct_experts(made(repeat=0.7, **alone).recording)["relative"].sel(window=8)
    assert_allclose(loose, 1, atol=0.02)
    assert (tied < 0.9).all()


@few
@given(made_recordings(probes=["routing"]))
def test_never_used_experts_are_those_no_token_chose(case):
    result = stats.unused_experts(case.recording)
    chose = case.routing.chose
    assert (result["never_used"].values == ~chose.any(axis=0)).all()
    assert (result["unused_final"].values == (~chose.any(axis=0)).sum(axis=-1)).all()
    assert_allclose(result["unused"].isel(sample_size=-1), result["unused_final"], atol=1e-9)


def test_the_curve_ends_at_the_planted_number_of_unused_experts():
    result = stats.unused_experts(made(never_used=3, sequences=64, length=64).recording)
    assert (result["unused_final"] == 3).all()
    assert_allclose(result["unused"].isel(sample_size=-1), 3, atol=1e-9)


def test_the_curve_is_the_mean_over_random_orders_of_the_tokens():
    case = made(sequences=8, layers=4, experts=12, top_k=2)
    result = stats.unused_experts(case.recording)["unused"].isel(layer=0)
    chose, rng = case.routing.chose[:, 0], np.random.default_rng(0)
    met = [np.logical_or.accumulate(chose[rng.permutation(len(chose))]) for _ in range(2000)]
    unused = 12 - np.mean([m.sum(axis=1) for m in met], axis=0)
    assert_allclose(result, unused[result["sample_size"].values - 1], atol=0.1)


@pytest.mark.slow
def test_the_interval_of_the_curve_covers_other_texts_of_the_same_sort():
    """Truth: the mean curve over many recordings with the same planted loads but other texts."""
    curves, covered = [], []
    for seed in range(60):
        case = made(seed=0, labels=["all"], sequences=16, layers=4, experts=24, top_k=2, text_effect=0.0)
        rng = np.random.default_rng(seed)
        logits = np.log(case.routing.probability[0, 0] + 1e-3) * 1.5
        text = rng.normal(0, 1, (16, 24))[case.texts.sequence]
        chosen = np.argsort(-(logits + text + rng.gumbel(size=text.shape)))[:, :2]
        node = case.recording["routing"].isel(layer=[0])
        load = np.zeros((1, 8, 1, 24), np.int64)
        np.add.at(load, (0, np.repeat(case.texts.fold, 2), 0, chosen.ravel()), 1)
        node["load"] = (("label", "fold", "layer", "expert"), load)
        curves.append(stats.unused_experts(node).isel(layer=0))
    middle = curves[0]["sample_size"].values[len(curves[0]["sample_size"]) * 2 // 3]
    truth = np.mean([c["unused"].sel(sample_size=middle) for c in curves])
    for curve in curves:
        low, high = curve["unused_interval"].sel(sample_size=middle)
        covered.append(low <= truth <= high)
    assert np.mean(covered) > 0.75


def test_loads_that_do_not_add_up_are_refused():
    node = made().recording["routing"]
    node["load"] = node["load"] + 1
    with pytest.raises(InconsistentRecording, match="do not add up to top_k=4 slots per token"):
        stats.expert_load(node)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_probability(level):
    with pytest.raises(BadArgument, match=r"such as 0\.95"):
        stats.expert_load(made().recording, level=level)
