"""Diagnosis of an audit: verdicts and sentences from known numbers."""

import numpy as np
import pytest
import xarray as xr

from qwenlab.speculative.audit.contract import Contract
from qwenlab.speculative.audit.diagnosis import diagnose, rank_faults, setting_verdict, undecided_settings

NOTHING = (0.0, 0.0)


def settings(effects, *, first=0.5, spread=0.05, scaled=0):
    """A Dataset as `Audit.settings`: effects by label, (agreement, shared probability[, half width]) at every draft."""
    labels = ["assumed", *effects]
    data = {}
    for column, name in enumerate(("agreement", "shared_probability")):
        sizes = np.array([0.0, *(each[column] for each in effects.values())])
        halves = np.array([0.0, *(each[2] if len(each) > 2 else 0.01 for each in effects.values())])
        sizes, halves = np.stack([sizes, sizes], axis=1), np.stack([halves, halves], axis=1)
        data[name] = ("setting", "draft"), first + sizes
        data[f"{name}_interval"] = ("setting", "draft", "bound"), first + np.stack([sizes - 0.1, sizes + 0.1], axis=-1)
        data[f"{name}_effect"] = ("setting", "draft"), sizes
        data[f"{name}_effect_interval"] = ("setting", "draft", "bound"), np.stack([sizes - halves, sizes + halves], -1)
    attrs = {"final_norm_spread": spread, "mtp_norm_spread": 0.07, "scaled": scaled}
    out = xr.Dataset(data, {"setting": labels, "draft": [1, 2], "bound": ["low", "high"]}, attrs)
    out["verdict"] = "setting", ["", *(setting_verdict(out, label) for label in effects)]
    return out


def controls(own=0.5, commonest=0.1, shuffled=0.2, half=0.05):
    rates = np.array([own, commonest, shuffled])
    effect = rates - own
    halves = np.array([0, half, half])
    data = {
        "agreement": ("control", rates),
        "agreement_interval": (("control", "bound"), np.stack([rates - 0.1, rates + 0.1], axis=1)),
        "agreement_effect_interval": (("control", "bound"), np.stack([effect - halves, effect + halves], axis=1)),
    }
    names = ["wanted contract", "commonest token", "shuffled hidden"]
    return xr.Dataset(data, {"control": names, "bound": ["low", "high"]})


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        ((0.1, 0.1), "wanted"),
        ((0.1, 0.0), "wanted"),
        ((0.0, 0.1), "wanted"),
        ((-0.1, -0.1), "worse"),
        ((0.0, -0.1), "worse"),
        ((0.1, -0.1), "cannot tell"),  # the measures contradict each other
        ((0.1, 0.1, 0.2), "cannot tell"),  # 0 is in the interval
        ((0.0, 0.0), "cannot tell"),  # as far as is known it could be 0.01
        ((0.0, 0.0, 0.004), "same"),
        ((0.004, 0.004, 0.0005), "same"),  # beyond doubt, but of no size
        ((-0.004, 0.0, 0.0005), "same"),
        ((0.006, 0.0, 0.0005), "wanted"),
        ((np.nan, np.nan), "cannot tell"),
    ],
)
def test_verdict_of_a_setting(effect, verdict):
    assert settings({"norms = w": effect})["verdict"].values.tolist() == ["", verdict]


def test_the_largest_gain_is_first_and_the_chain_last():
    effects = {
        "norms = w": (0.1, 0.1),
        "order = hidden first": (0.2, 0.1),
        "tokens = x[p]": (-0.2, -0.1),
        "chain = before mtp.norm": (0.4, 0.4),
    }
    assert rank_faults(settings(effects)) == ("order = hidden first", "norms = w", "chain = before mtp.norm")


def diagnosed(data, measured=None):
    return diagnose(data, controls() if measured is None else measured, rank_faults(data))


def test_a_fault_comes_with_its_effect_and_fix():
    verdict, sentence = diagnosed(settings({"norms = w": (0.1, 0.2), "order = hidden first": (0.05, 0.0)}))
    assert verdict == "fault found"
    assert sentence == (
        "the weights want norms = w: agreement of draft 1 0.500 -> 0.600, +0.100 [+0.090, +0.110]; fix: 1 was added "
        "to its norm weights before they were stored: subtract 1 from them all, or multiply by w. Also better, one "
        "at a time: order = hidden first"
    )


def test_the_sentence_names_the_decisive_measure():
    _, sentence = diagnosed(settings({"norms = w": (0.0, 0.2)}))
    assert "norms = w: shared probability of draft 1 0.500 -> 0.700, +0.200 [+0.190, +0.210]; fix" in sentence


def test_the_chain_is_diagnosed_by_draft_2():
    _, sentence = diagnosed(settings({"chain = after mtp.norm": (0.2, 0.2)}))
    assert "agreement of draft 2 0.500 -> 0.700" in sentence
    assert "fix: feed back the output of mtp.norm" in sentence


def test_every_setting_has_a_fix():
    labels = {label for variant in Contract().variants().values() for label in variant.variants()}
    assert len(labels) == 16
    for label in labels:
        assert "; fix: " in diagnosed(settings({label: (0.2, 0.2)}))[1]


def test_no_fault():
    verdict, sentence = diagnosed(settings({"norms = w": (-0.1, -0.2)}))
    assert verdict == "no fault found"
    assert sentence == (
        "no fault found: draft 1 agrees in 0.500 [0.400, 0.600] of the places, by chance in 0.100, and no other "
        "setting does better"
    )


def test_a_head_at_chance_gets_no_verdict():
    data = settings({"norms = w": (0.05, 0.05)})
    verdict, sentence = diagnosed(data, controls(own=0.12))
    assert verdict == "no verdict"
    assert "not distinguishable from 0.100 for always drafting the target model's commonest token" in sentence
    assert "two settings are wrong at once" in sentence


def test_a_head_that_ignores_hidden_states_gets_no_verdict():
    verdict, sentence = diagnosed(settings({"norms = w": NOTHING}), controls(shuffled=0.48))
    assert verdict == "no verdict"
    assert "not distinguishable from 0.480 for the head with shuffled hidden states" in sentence


def test_undecided_settings_come_with_the_reason():
    effects = {
        "hidden = before the final norm": NOTHING,
        "norms = w": NOTHING,
        "norms = 2 + w": (-0.1, -0.1),
        "chain = before mtp.norm": NOTHING,
        "weights = scaled like the target model": (0, 0, 0),
    }
    assert undecided_settings(settings(effects)) == [
        "cannot tell: hidden = before the final norm: the scale of the target model's final norm varies by 5% of its "
        "mean, and norms undo its constant part",
        "cannot tell: norms = w",
        "cannot tell: chain = before mtp.norm: the scale of mtp.norm varies by 7% of its mean, and norms undo its "
        "constant part",
        "no difference here: weights = scaled like the target model: all matrices have about the target model's "
        "size, so none was scaled",
    ]
