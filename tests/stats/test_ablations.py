"""Effects of ablations agree with loops over every ablation and text, and with planted effects."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import t as student

from qwenlab import stats
from qwenlab.errors import BadArgument, InconsistentRecording, MissingVariable, NotARecording, NothingMeasured
from qwenlab.record import Recording
from qwenlab.stats.formulas.intervals import expanded_level
from tests.planted.sweeps import made_sweep
from tests.stats.formulas.test_paired import slow_flip_p, slow_holm

SCORES = ("loss", "accuracy", "kl", "agreement")
SMALL = dict(layers=2, tasks={"code": 5, "recall": 4}, controls=2)


def effect_of(sweep, score, ablation, text):
    """Of one ablation on one text, positive for the worse."""
    one = sweep.isel(ablation=ablation, text=text)
    if score == "loss":
        return float(one["loss"]) - float(one["clean_loss"])
    if score == "accuracy":
        return float(one["clean_accuracy"]) - float(one["accuracy"])
    return float(one["kl"]) if score == "kl" else 1 - float(one["agreement"])


def loops(sweep, score):
    """effect by (task, ablation), controls too, and effect beyond their controls by (task, unit)."""
    names, tasks = sweep["ablation"].values.tolist(), sweep["task"].values.tolist()
    whose = sweep["control_of"].values.tolist()
    effect, beyond = {}, {}
    for task in dict.fromkeys(tasks):
        texts = [text for text, each in enumerate(tasks) if each == task]
        by_text = {name: [effect_of(sweep, score, row, text) for text in texts] for row, name in enumerate(names)}
        effect |= {(task, name): by_text[name] for name in names}
        for name in (name for name, of in zip(names, whose, strict=True) if of == ""):
            own = [by_text[other] for other, of in zip(names, whose, strict=True) if of == name]
            beyond[task, name] = np.array(by_text[name]) - np.mean(own, axis=0) if own else [np.nan] * len(texts)
    return effect, beyond


SWEEPS = st.builds(
    made_sweep,
    seed=st.integers(0, 999),
    layers=st.just(2),
    tasks=st.sampled_from([{"code": 5}, {"code": 4, "recall": 5}]),
    controls=st.integers(0, 2),
    planted=st.sampled_from([{}, {"mixer 1": 0.4}]),
)


@settings(max_examples=12)
@given(sweep=SWEEPS, score=st.sampled_from(SCORES))
def test_by_loops(sweep, score):
    result = stats.ablations(sweep, score=score, resamples=4)
    effect, beyond = loops(sweep, score)
    p = {}
    for task in result["task"].values:
        for name in result["ablation"].values:
            one = result.sel(task=task, ablation=name)
            assert_allclose(one["effect"], np.mean(effect[task, name]), atol=1e-12)
            assert_allclose(one["effect_above_controls"], np.mean(beyond[task, name]), atol=1e-12)
            p[task, name] = slow_flip_p(np.round(effect[task, name], 12))
            assert_allclose(one["p"], p[task, name])
        for name in result["control"].values:
            value = result["control_effect"].sel(task=task, control=name)
            assert_allclose(value, np.mean(effect[task, name]), atol=1e-12)
    assert_allclose(result["p_holm"].values.ravel(), slow_holm(list(p.values())))
    assert result.attrs["hypotheses"] == len(p)
    whose = sweep["control_of"].values.tolist()
    assert result["ablation"].values.tolist() == sweep["ablation"].values[np.array(whose) == ""].tolist()
    assert result["controls"].values.tolist() == [whose.count(name) for name in result["ablation"].values]


@pytest.mark.parametrize("score", SCORES)
def test_of_the_unedited_model(score):
    sweep = made_sweep(**SMALL)
    result = stats.ablations(sweep, score=score)
    for task in ("code", "recall"):
        here = [text for text, name in enumerate(sweep["task"].values) if name == task]
        clean = [float(sweep["clean_accuracy"][text]) for text in here]
        chance = float(sweep["chance"][here[0]])
        one = result.sel(task=task)
        assert int(one["texts"]) == len(here)
        assert_allclose(one["clean_loss"], np.mean([float(sweep["clean_loss"][text]) for text in here]))
        assert_allclose(one["clean_accuracy"], np.mean(clean))
        assert_allclose(one["above_chance"], np.mean(clean) - chance)
        if score == "accuracy":
            for name in result["ablation"].values:
                expected = float(one["effect"].sel(ablation=name)) / (np.mean(clean) - chance)
                assert_allclose(one["share_lost"].sel(ablation=name), expected)
    assert ("share_lost" in result) == (score == "accuracy")


def drawn(values, texts, level, how, of=np.mean):
    """The percentile bootstrap of rows [row, text], each draw as often as it names a text."""
    draws = np.random.default_rng(how["seed"]).multinomial(texts, [1 / texts] * texts, size=how["resamples"])
    level = expanded_level(level, texts)
    found = [[of(np.repeat(row, times)) for row in values] for times in draws]
    return np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], axis=0).T


def test_intervals_draw_whole_texts_and_count_that_controls_were_drawn_too():
    sweep, how = made_sweep(**SMALL, seed=4), dict(resamples=40, seed=3)
    result = stats.ablations(sweep, score="accuracy", level=0.9, **how)
    effect, beyond = loops(sweep, "accuracy")
    units, whose = result["ablation"].values, sweep["control_of"].values.tolist()
    for task, texts in (("code", 5), ("recall", 4)):
        here = result.sel(task=task)
        ends = drawn([effect[task, name] for name in units], texts, 0.9, how)
        assert_allclose(here["effect_interval"].transpose("ablation", "bound"), ends, atol=1e-12)
        narrow = drawn([beyond[task, name] for name in units], texts, 0.9, how)
        for name, (low, high) in zip(units, narrow, strict=True):
            own = [
                np.mean(effect[task, other])
                for other, of in zip(sweep["ablation"].values, whose, strict=True)
                if of == name
            ]
            reach = 6.313751514675 * np.std(own, ddof=1) / np.sqrt(2)  # Student's, one degree of freedom, 90 %
            middle = float(here["effect_above_controls"].sel(ablation=name))
            expected = [middle - np.hypot(middle - low, reach), middle + np.hypot(high - middle, reach)]
            assert_allclose(here["effect_above_controls_interval"].sel(ablation=name), expected, atol=1e-9)


def test_only_the_planted_ablation_is_significant_and_it_ranks_first():
    sweep = made_sweep(planted={"mixer 3": 0.8}, seed=4)
    for score in SCORES:
        result = stats.ablations(sweep, score=score)
        for task in result["task"].values:
            here = result.sel(task=task)
            one, rest = here.sel(ablation="mixer 3"), here.drop_sel(ablation="mixer 3")
            assert bool(one["significant"]) and not rest["significant"].any()
            assert int(one["rank_low"]) == 1
            assert float(one["effect_interval"].sel(bound="low")) > 0
            assert int(one["rank_high"]) == 1 and (rest["rank_low"] >= 2).all()


def test_helpful_ablations_are_significant_with_a_negative_effect():
    result = stats.ablations(made_sweep(planted={"mlp 5": -0.4}, seed=2, controls=6))
    assert result["significant"].sum("task").to_series().to_dict()["mlp 5"] == 2
    assert (result["effect"].sel(ablation="mlp 5") < 0).all()
    assert (result["rank_low"].sel(ablation="mlp 5") == result.sizes["ablation"]).all()


def test_equal_effects_elsewhere_are_not_significant():
    """Where all ablations have the same effect, all differ from 0, and none exceeds its controls."""
    names = [f"{part} {layer}" for part in ("mixer", "mlp") for layer in range(8)]
    significant = []
    for seed in range(25):
        sweep = made_sweep(planted=dict.fromkeys(names, 0.4), seed=seed, controls=5)
        result = stats.ablations(sweep, resamples=50)
        assert (result["p_holm"] < 0.05).all()
        significant.append(bool(result["significant"].any()))
        assert (result["rank_low"] == 1).mean() > 0.8
    assert np.mean(significant) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 25)


def test_going_beyond_controls_is_welchs_t_corrected_for_all():
    sweep = made_sweep(**SMALL, seed=5)
    result = stats.ablations(sweep)
    effect, beyond = loops(sweep, "loss")
    names, whose = sweep["ablation"].values.tolist(), sweep["control_of"].values.tolist()
    p = {}
    for (task, name), apart in beyond.items():
        own = [np.mean(effect[task, other]) for other, of in zip(names, whose, strict=True) if of == name]
        texts, controls = np.var(apart, ddof=1) / len(apart), np.var(own, ddof=1) / len(own)
        freedom = (texts + controls) ** 2 / (texts**2 / (len(apart) - 1) + controls**2 / (len(own) - 1))
        p[task, name] = 2 * student.sf(abs(np.mean(apart)) / np.sqrt(texts + controls), freedom)
        assert_allclose(result["p_above_controls"].sel(task=task, ablation=name), p[task, name])
    assert_allclose(result["p_above_controls_holm"].values.ravel(), slow_holm(list(p.values())))
    significant = (
        (result["p_holm"] < 0.05)
        & (result["p_above_controls_holm"] < 0.05)
        & (result["effect"] * result["effect_above_controls"] > 0)
    )
    assert_array_equal(result["significant"], significant)


def test_one_control_says_nothing_of_how_controls_differ():
    result = stats.ablations(made_sweep(planted={"mixer 3": 0.4}, controls=1))
    assert result["effect_above_controls"].notnull().all()
    assert result["effect_above_controls_interval"].isnull().all()
    assert not result["significant"].any()
    alone = stats.ablations(made_sweep(planted={"mixer 3": 0.4}, controls=0))
    assert alone["effect_above_controls"].isnull().all() and alone.sizes["control"] == 0
    assert alone["significant"].sel(ablation="mixer 3").all()


@settings(max_examples=8)
@given(seed=st.integers(0, 999), random=st.randoms(use_true_random=False), score=st.sampled_from(SCORES))
def test_the_order_of_texts_tasks_and_controls_changes_nothing(seed, random, score):
    sweep = made_sweep(**SMALL, seed=seed, planted={"mlp 1": 0.3})
    texts = random.sample(range(9), 9)
    units = [row for row, of in enumerate(sweep["control_of"].values) if of == ""]
    others = [row for row in range(sweep.sizes["ablation"]) if row not in units]
    mixed = sweep.isel(text=texts, ablation=[*random.sample(others, len(others)), *units])
    one, two = (stats.ablations(each, score=score, resamples=4) for each in (sweep, mixed))
    names = [
        "effect",
        "effect_above_controls",
        "p",
        "p_holm",
        "p_above_controls_holm",
        "rank_low",
        "rank_high",
        "texts",
        "clean_loss",
    ]
    two = two.sel(task=one["task"])
    for name in names:
        assert_allclose(one[name], two[name], atol=1e-12, err_msg=name)
    assert_allclose(one["control_effect"], two["control_effect"].sel(control=one["control"]), atol=1e-12)


@settings(max_examples=8)
@given(seed=st.integers(0, 999), shift=st.integers(-8, 8).map(lambda eighths: eighths / 8))
def test_a_shift_of_all_losses_shifts_effects_and_nothing_else(seed, shift):
    sweep = made_sweep(**SMALL, seed=seed)
    sweep = sweep.assign(
        loss=(sweep["loss"] * 1024).round() / 1024, clean_loss=(sweep["clean_loss"] * 1024).round() / 1024
    )
    one, two = (stats.ablations(each, resamples=20) for each in (sweep, sweep.assign(loss=sweep["loss"] + shift)))
    for name in ("effect", "effect_interval", "control_effect", "control_effect_interval"):
        assert_allclose(two[name], one[name] + shift, atol=1e-9)
    for name in ("effect_above_controls", "effect_above_controls_interval", "rank_low", "rank_high"):
        assert_allclose(two[name], one[name], atol=1e-9)


def test_a_task_at_chance_has_nothing_to_lose():
    result = stats.ablations(made_sweep(able={"recall": 0.1}, layers=2), score="accuracy")
    assert result["at_chance"].values.tolist() == [False, True]
    assert result["share_lost"].isnull().all()  # of code, chance is not known
    assert result["share_lost_interval"].isnull().all()
    able = stats.ablations(made_sweep(layers=2), score="accuracy")
    assert not able["at_chance"].any()
    assert able["share_lost"].sel(task="recall").notnull().all()


def test_one_text_has_no_interval_and_nothing_is_significant():
    result = stats.ablations(made_sweep(tasks={"code": 1}, layers=2, planted={"mixer 0": 9}))
    assert result["effect"].notnull().all()
    assert result["effect_interval"].isnull().all() and result["effect_above_controls_interval"].isnull().all()
    assert (result["p"] == 1).all() and not result["significant"].any()


def test_p_can_be_small_enough_for_its_correction():
    result = stats.ablations(
        made_sweep(layers=32, tasks={"code": 40}, planted={"mixer 3": 1}, controls=2), resamples=50
    )
    assert bool(result["significant"].sel(ablation="mixer 3").all())
    assert float(result["p"].min()) < 0.05 / 64


def test_a_recording_and_a_dataset_read_from_a_file_give_the_same(tmp_path):
    sweep = made_sweep(**SMALL)
    result = stats.ablations(sweep)
    assert result.attrs["checkpoint"] == "a made model"
    assert (
        stats.ablations(Recording({"ablations": sweep}, {"checkpoint": "its name"}))
        .drop_attrs()
        .equals(result.drop_attrs())
    )
    sweep.to_netcdf(tmp_path / "sweep.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "sweep.nc", engine="h5netcdf") as stored:
        again = stats.ablations(stored.load())
    xr.testing.assert_allclose(again, result)
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")


def test_attrs_of_the_tests():
    result = stats.ablations(made_sweep(**SMALL), score="kl", level=0.8, resamples=30, seed=7)
    assert (result.attrs["score"], result.attrs["level"], result.attrs["hypotheses"]) == ("kl", 0.8, 8)
    ends = result["effect_interval"].attrs
    assert ends["interval"] == "bootstrap of whole texts, expanded percentiles"
    assert (ends["resamples"], ends["seed"], ends["units"]) == (30, 7, "nat/token")


def test_errors():
    sweep = made_sweep(**SMALL)
    with pytest.raises(BadArgument, match=r"score='los'\): give one of 'loss', 'accuracy', 'kl', 'agreement'"):
        stats.ablations(sweep, score="los")
    with pytest.raises(BadArgument, match=r"level=95"):
        stats.ablations(sweep, level=95)
    with pytest.raises(BadArgument, match=r"resamples=0"):
        stats.ablations(sweep, resamples=0)
    with pytest.raises(NotARecording, match=r"Give qwenlab\.ablations\.sweep\("):
        stats.ablations({})
    with pytest.raises(MissingVariable, match=r"(?s)No kl in this Dataset; .*one made by qwenlab\.ablations\.sweep"):
        stats.ablations(sweep.drop_vars("kl"), score="kl")
    with pytest.raises(InconsistentRecording, match=r"controls of 'mixer 0' but not that ablation"):
        stats.ablations(sweep.drop_sel(ablation="mixer 0"))
    with pytest.raises(NothingMeasured, match=r"8 ablations besides controls, and 0 texts"):
        stats.ablations(
            made_sweep(
                **SMALL,
            )
            .isel(text=[])
            .isel(ablation=slice(8))
            .assign_coords(control_of=("ablation", [""] * 8))
        )
    with pytest.raises(NothingMeasured, match=r"has 0 ablations besides controls"):
        stats.ablations(sweep.isel(ablation=np.flatnonzero(sweep["control_of"].values != "")))
    broken = sweep.copy(deep=True)
    broken["loss"][1, 2] = np.nan
    with pytest.raises(
        NothingMeasured, match=r"1 of 108 values of loss are NaN or infinite, first of 'mixer 1' on text 2"
    ):
        stats.ablations(broken)
    several = sweep.assign(chance=("text", np.arange(9) / 10))
    with pytest.raises(InconsistentRecording, match=r"Task 'code' has more than one chance level: \[0\.0, 0\.1"):
        stats.ablations(several)
    assert_array_equal(sweep["loss"], made_sweep(**SMALL)["loss"])
