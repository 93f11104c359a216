"""The ranked table and the sentences repeat the numbers of the statistics, with their caveats."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.sweeps import made_ablated_acceptance, made_sweep


@pytest.fixture(scope="module")
def statistics():
    return stats.ablations(made_sweep(planted={"mixer 3": 0.4, "mlp 6": -0.3}, seed=4))


def test_the_table_is_in_the_order_of_the_effect(statistics):
    table = stats.ablation_table(statistics, "recall")
    here = statistics.sel(task="recall")
    assert (np.diff(table["effect"]) <= 0).all()
    assert table["ablation"].values[0] == "mixer 3" and table["ablation"].values[-1] == "mlp 6"
    assert sorted(table["ablation"].values) == sorted(statistics["ablation"].values)
    for name in ("effect", "effect_above_controls", "p_holm", "rank_low", "rank_high", "significant"):
        assert_allclose(table[name].astype(float), here[name].sel(ablation=table["ablation"]).astype(float))
    for name in ("effect", "effect_above_controls"):
        low, high = (here[f"{name}_interval"].sel(ablation=table["ablation"], bound=end) for end in ("low", "high"))
        assert_allclose(table[f"{name}_interval"].sel(bound="low"), low)
        assert_allclose(table[f"{name}_interval"].sel(bound="high"), high)
    assert table.attrs["task"] == "recall"
    frame = table.sel(bound="low").to_dataframe()
    assert frame.index.tolist() == table["ablation"].values.tolist()
    assert {"unit", "layer", "kind", "intervention", "parameters", "controls"} <= set(frame)
    assert "share_lost" not in frame
    effects = ("effect", "effect_interval", "effect_above_controls_interval")
    assert {table[name].attrs["units"] for name in effects} == {"nat/token"}


def test_the_table_of_accuracy_has_the_share_lost():
    statistics = stats.ablations(made_sweep(layers=2), score="accuracy")
    assert {"share_lost", "share_lost_interval"} <= set(stats.ablation_table(statistics, "recall"))


def numbers(text):
    return [float(each) for each in re.findall(r"[+-]\d[\d.]*(?:e[+-]\d+)?", text)]


def test_significant_effects_are_reported_with_every_number(statistics):
    words = stats.ablation_findings(statistics)
    heading, *tasks = [line for line in words.split("\n") if line]
    assert heading.startswith(
        "**a made model, 16 ablations, rise of the loss: 4 of 32 effects are significant, in 2 of 2 tasks.**"
    )
    assert "both with p < 0.05 after Holm's correction over 32 tests" in heading
    for name, line in zip(("code", "recall"), tasks, strict=True):
        here = statistics.sel(task=name)
        assert line.startswith(f"- **{name}**, 16 texts: 2 of 16 effects are significant: `mixer 3` (attention) ")
        one = here.sel(ablation="mixer 3")
        ends = [
            *one["effect_interval"].values,
            float(one["effect_above_controls"]),
            *one["effect_above_controls_interval"].values,
        ]
        assert_allclose(numbers(line)[:6], [float(one["effect"]), *ends], rtol=6e-3)
        assert f"] nat/token above 3 controls (p {float(one['p_above_controls_holm']):.2g}), rank 1;" in line
        assert "`mlp 6` (DeltaNet) -0." in line and "the model does better without it" in line
        assert ", rank 16." in line
        rest = here.drop_sel(ablation=["mixer 3", "mlp 6"])
        largest = rest.isel(ablation=int(np.abs(rest["effect"].values).argmax()))
        assert (
            f"Of the other 14, none differs significantly from 0; the largest is `{largest['ablation'].item()}`" in line
        )
        assert f"p {float(largest['p_holm']):.2g}." in line


def test_no_significant_effect_is_reported():
    words = stats.ablation_findings(stats.ablations(made_sweep(seed=5)))
    assert words.startswith("**a made model, 16 ablations, rise of the loss: no effect is significant.**")
    assert words.count("No effect is significant. Of the other 16, none differs significantly from 0") == 2


def test_effects_within_those_of_controls_are_reported_apart():
    names = [f"{part} {layer}" for part in ("mixer", "mlp") for layer in range(8)]
    words = stats.ablation_findings(stats.ablations(made_sweep(planted=dict.fromkeys(names, 0.4), seed=3)))
    assert words.count("16 more effects differ from 0 but do not significantly exceed those of their controls: ") == 2
    assert words.count("; and 11 more.") == 2


def test_too_few_texts_are_reported():
    words = stats.ablation_findings(stats.ablations(made_sweep(tasks={"code": 6, "prose": 12})))
    assert "6 texts are too few: p cannot be less than 0.031, and 32 tests need p < 0.0016" in words
    enough = int(re.search(r"read (\d+) texts or more", words)[1])
    assert 2.0 ** (1 - enough) * 32 < 0.05 <= 2.0 ** (2 - enough) * 32
    assert words.count("too few") == 1


def test_a_task_at_chance_is_reported():
    sweep = made_sweep(able={"recall": 0.1}, layers=2)
    words = stats.ablation_findings(stats.ablations(sweep, score="accuracy"))
    assert words.count("The intact model is not significantly above chance here: accuracy ") == 1
    assert ": there is nothing to lose." in words
    assert "it does not solve this task, ablated or not." in stats.ablation_findings(stats.ablations(sweep))


def test_the_share_lost_is_reported_for_accuracy():
    words = stats.ablation_findings(stats.ablations(made_sweep(planted={"mixer 3": 2}), score="accuracy"))
    of_recall = words.split("**recall**")[1]
    assert re.search(r"`mixer 3` \(attention\) .*, \d+% \[\d+%, \d+%\] of the accuracy above chance", of_recall)
    assert "above chance" not in words.split("**recall**")[0]  # code has no chance


@pytest.mark.parametrize(
    ("controls", "caveat"), [(0, "No ablation has controls"), (1, "16 ablations (`mixer 0`"), (2, None)]
)
def test_few_controls_are_a_caveat(controls, caveat):
    words = stats.ablation_findings(stats.ablations(made_sweep(controls=controls)))
    assert ("controls:" in words or "fewer than two controls" in words) == (caveat is not None)
    assert caveat is None or caveat in words


@pytest.mark.parametrize("score", ["kl", "agreement"])
def test_scores_that_are_never_better_are_a_caveat(score):
    words = stats.ablation_findings(stats.ablations(made_sweep(), score=score))
    assert "This score is never better than the intact model's" in words


def test_acceptance_is_reported_with_its_rule_and_the_texts_left_out():
    made = made_ablated_acceptance(layers=4)
    made["acceptance_length"][3, 1] = np.nan
    words = stats.ablation_findings(stats.ablated_acceptance(made))
    assert "fall of the acceptance length: " in words
    assert "Drafts: rule greedy, depth 3, policy fixed depth, text teacher_forced." in words
    assert "Left out: 1 text without a round under some ablation." in words
    assert "chance" not in words


def test_errors(statistics):
    with pytest.raises(BadArgument, match=r"task='cod': these statistics have code, recall"):
        stats.ablation_table(statistics, "cod")
    for function in (stats.ablation_findings, lambda data: stats.ablation_table(data, "code")):
        with pytest.raises(MissingVariable, match=r"Give the result of qwenlab\.stats\.ablations\(sweep\) or"):
            function(made_sweep())
        with pytest.raises(MissingVariable, match=r"This is a dict"):
            function({})
