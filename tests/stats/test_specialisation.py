"""Specialisation: silent where nothing is planted, loud where something is."""

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import NothingMeasured
from qwenlab.testing.recordings import made
from qwenlab.testing.strategies import made_recordings


@settings(max_examples=10)
@given(made_recordings(probes=["routing"], fewest_labels=2, fewest_sequences=6))
def test_information_and_log_odds_by_loops(case):
    result = stats.specialisation(case.recording, permutations=5).isel(layer=0)
    chosen, label = case.routing.chosen[:, 0], case.texts.label
    slots = [(label[t], expert) for t in range(len(label)) for expert in chosen[t].tolist()]
    labels, experts = np.array(slots).T
    information = 0.0
    for pair in set(slots):
        p = slots.count(pair) / len(slots)
        information += p * np.log2(p / ((labels == pair[0]).mean() * (experts == pair[1]).mean()))
    assert_allclose(result["information"], information, atol=1e-10)
    shares = [(labels == one).mean() for one in set(labels.tolist())]
    assert_allclose(result["label_entropy"], -sum(p * np.log2(p) for p in shares), atol=1e-10)
    chose = case.routing.chose[:, 0, 0]
    odds = [(chose[where].sum() + 0.5) / ((~chose[where]).sum() + 0.5) for where in (label == 0, label != 0)]
    assert_allclose(result["log_odds"].sel(expert=0).isel(label=0), np.log(odds[0] / odds[1]), atol=1e-10)


def p_values(texts, **planted):
    cases = [made(seed=seed, sequences=texts, layers=4, probes=["routing"], **planted) for seed in range(25)]
    return np.ravel([stats.specialisation(case.recording, permutations=200)["p_value"] for case in cases])


@pytest.mark.slow
def test_p_values_are_evenly_spread_where_labels_mean_nothing_though_texts_differ():
    p = p_values(32, specialisation=0.0, text_effect=0.7, correlation=0.0)
    assert 0.4 < p.mean() < 0.6
    assert (p <= 0.1).mean() < 0.2
    assert (p >= 0.9).mean() < 0.2


def test_a_planted_specialisation_is_found():
    result = stats.specialisation(made(specialisation=1.0, sequences=32, text_effect=0.3).recording, permutations=200)
    assert (result["p_value"] == 1 / 201).all()
    assert (result["specialisation"] > 0.05).all()
    assert (result["shuffled_interval"].sel(bound="high") < result["information"]).all()


def test_labels_that_mean_nothing_leave_specialisation_near_zero():
    result = stats.specialisation(made(specialisation=0.0, sequences=32, text_effect=0.7).recording)
    assert np.abs(result["specialisation"]).max() < 0.05
    assert (result["information"] > 0).all()  # the plug-in alone would claim some


def test_a_shuffle_of_tokens_would_have_called_texts_a_specialisation():
    """Why blocks are shuffled: with labels that mean nothing, token shuffles reject nearly always."""
    case = made(specialisation=0.0, text_effect=1.0, sequences=16, length=48, labels=["a", "b"])
    chose, rng = case.routing.chose[:, 0], np.random.default_rng(0)

    def information(label):
        table = np.array([chose[label == one].sum(axis=0) for one in (0, 1)]) + 1e-9
        joint = table / table.sum()
        return (joint * np.log(joint / np.outer(joint.sum(axis=1), joint.sum(axis=0)))).sum()

    seen = information(case.texts.label)
    tokens = np.mean([information(rng.permutation(case.texts.label)) >= seen for _ in range(200)])
    result = stats.specialisation(case.recording, permutations=200)["p_value"].isel(layer=0)
    assert tokens == 0
    assert result > 0.02


def test_the_seed_decides_and_is_recorded():
    recording = made().recording
    first, again = (stats.specialisation(recording, permutations=50, seed=3) for _ in range(2))
    assert first.identical(again)
    assert first.attrs["seed"] == 3
    assert first.attrs["blocks"] == 16


def test_one_label_cannot_be_compared():
    with pytest.raises(NothingMeasured, match="all tokens have the same one \\('code'\\)"):
        stats.specialisation(made(labels=["code"]).recording)


def test_one_text_a_label_cannot_be_shuffled():
    with pytest.raises(NothingMeasured, match="at least two texts per label"):
        stats.specialisation(made(labels=["code", "prose"], sequences=2).recording)
