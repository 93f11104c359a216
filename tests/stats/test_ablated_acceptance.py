"""What ablations cost in accepted drafts, held to loops over texts and to the statistics of sweeps."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import InconsistentRecording, MissingVariable, NothingMeasured
from qwenlab.record import Recording
from qwenlab.stats.formulas.intervals import expanded_level
from tests.planted.sweeps import made_ablated_acceptance
from tests.stats.formulas.test_paired import slow_flip_p

SMALL = dict(layers=4, tasks={"code": 5, "prose": 4}, controls=2)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), missing=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 8)), max_size=2))
def test_by_loops(seed, missing):
    made = made_ablated_acceptance(**SMALL, seed=seed)
    for ablation, text in missing:
        made["acceptance_length"][ablation, text] = np.nan
    result = stats.ablated_acceptance(made, resamples=4)
    gone = {text for _, text in missing}
    for label in ("code", "prose"):
        texts = [text for text, name in enumerate(made["label"].values) if name == label and text not in gone]
        one = result.sel(task=label)
        clean = [float(made["clean_acceptance_length"][text]) for text in texts]
        assert (int(one["texts"]), int(one["left_out"])) == (len(texts), SMALL["tasks"][label] - len(texts))
        assert_allclose(one["clean_acceptance_length"], np.mean(clean))
        for row, (name, of) in enumerate(zip(made["ablation"].values, made["control_of"].values, strict=True)):
            lengths = [float(made["acceptance_length"][row, text]) for text in texts]
            effect = [before - after for before, after in zip(clean, lengths, strict=True)]
            if of:
                assert_allclose(one["control_effect"].sel(control=name), np.mean(effect), atol=1e-12)
            else:
                assert_allclose(one["effect"].sel(ablation=name), np.mean(effect), atol=1e-12)
                assert_allclose(one["p"].sel(ablation=name), slow_flip_p(effect))


def test_the_clean_length_has_an_interval_over_texts():
    made, how = made_ablated_acceptance(**SMALL, seed=2), dict(resamples=30, seed=5)
    result = stats.ablated_acceptance(made, level=0.9, **how)
    for label, texts in (("code", slice(0, 5)), ("prose", slice(5, 9))):
        clean = made["clean_acceptance_length"].values[texts]
        count = len(clean)
        draws = np.random.default_rng(5).multinomial(count, [1 / count] * count, size=30)
        level = expanded_level(0.9, count)
        ends = np.quantile([np.repeat(clean, times).mean() for times in draws], [0.5 - level / 2, 0.5 + level / 2])
        assert_allclose(result["clean_acceptance_length_interval"].sel(task=label), ends)


def test_only_the_planted_mixer_is_significant():
    result = stats.ablated_acceptance(made_ablated_acceptance(seed=1, controls=5))
    assert result["significant"].sum("task").to_series().to_dict() == dict.fromkeys(result["ablation"].values, 0) | {
        "mixer 3": 2
    }
    assert (result["rank_high"].sel(ablation="mixer 3") == 1).all()
    assert (result["effect_interval"].sel(ablation="mixer 3", bound="low") > 0).all()
    assert result["effect"].attrs["units"] == "token"


def test_all_texts_as_one():
    made = made_ablated_acceptance(**SMALL)
    result = stats.ablated_acceptance(made, by_label=False)
    assert result["task"].values.tolist() == ["all texts"] and int(result["texts"][0]) == 9
    lengths = made["clean_acceptance_length"] - made["acceptance_length"]
    units = made["control_of"].values == ""
    assert_allclose(result["effect"][0], lengths.mean("text")[units])


def test_the_rule_is_part_of_it_and_a_recording_gives_the_same():
    made = made_ablated_acceptance(**SMALL)
    result = stats.ablated_acceptance(made)
    facts = {name: result.attrs[name] for name in ("rule", "depth", "policy", "text", "origin", "checkpoint")}
    assert facts == {
        "rule": "greedy",
        "depth": 3,
        "policy": "fixed depth",
        "text": "teacher_forced",
        "origin": "replay",
        "checkpoint": "a made model",
    }
    again = stats.ablated_acceptance(Recording({"ablated_acceptance": made}, {}))
    assert again.drop_attrs().equals(result.drop_attrs())


def test_the_table_takes_it():
    table = stats.ablation_table(stats.ablated_acceptance(made_ablated_acceptance(seed=1)), "code")
    assert table["ablation"].values[0] == "mixer 3"


def test_errors():
    made = made_ablated_acceptance(**SMALL)
    with pytest.raises(MissingVariable, match=r"(?s)No label.*made by qwenlab\.ablations\.acceptance"):
        stats.ablated_acceptance(made.drop_vars("label"))
    with pytest.raises(InconsistentRecording, match="controls of 'mixer 1'"):
        stats.ablated_acceptance(made.drop_sel(ablation="mixer 1"))
    made["clean_acceptance_length"][5:] = np.nan
    with pytest.raises(NothingMeasured, match="Each text of 'prose' has no round"):
        stats.ablated_acceptance(made)
