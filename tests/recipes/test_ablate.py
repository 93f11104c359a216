"""What `qwenlab ablate` does: tasks by name, controls, a recording, findings, figures."""

from importlib import import_module

import pytest
from numpy.testing import assert_array_equal

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.recipes.ablate import _task

SMALL = dict(layers=[0, 3], count=2, max_tokens=16, controls=2, progress=False)


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "kept.npz"


@pytest.fixture(scope="module")
def done(toy, kept, tmp_path_factory):
    how = dict(tasks=["code", "mqar:2"], seed=3, resume=kept, **SMALL)
    return ql.recipes.ablate(toy, tmp_path_factory.mktemp("out"), **how)


def test_a_folder_with_recording_findings_and_figures(done, toy):
    recording = ql.Recording.open(done.recording)
    assert recording.attrs["checkpoint_hash"] == toy.facts.hash
    data = recording["ablations"]
    whose = data["control_of"].values.tolist()
    assert [name for name, of in zip(data["ablation"].values, whose, strict=True) if of == ""] == ["mixer 0", "mixer 3"]
    assert [whose.count(name) for name in ("mixer 0", "mixer 3")] == [2, 2]
    assert list(dict.fromkeys(data["task"].values.tolist())) == ["code", "mqar(pairs=2)"]
    assert ql.stats.ablations(recording, seed=3)["effect"].equals(done.statistics["effect"])
    assert done.findings.read_text() == ql.stats.ablation_findings(done.statistics)
    assert {figure.name for figure in done.figures if figure.stat().st_size > 5_000} == {
        *("ablation_map.png", "ablation_ranking_code.png", "ablation_ranking_mqar_pairs_2.png"),
    }
    assert done.without_controls == ()


def test_it_is_the_sweep_of_units_and_their_controls(done, toy):
    some, every = ql.ablations.units(toy, layers=[0, 3]), ql.ablations.units(toy)
    tasks = [
        ql.tasks.text_task(toy, ql.tasks.texts("code", 2), name="code", max_tokens=16),
        ql.tasks.mqar(toy, pairs=2, count=2, seed=3),
    ]
    matched = ql.ablations.controls(some, every, number=2, seed=3)
    by_hand = ql.ablations.sweep(toy, [*some, *matched], tasks, progress=False)
    data = ql.Recording.open(done.recording)["ablations"]
    assert data["ablation"].values.tolist() == by_hand["ablation"].values.tolist()
    for name in ("loss", "kl", "clean_loss"):
        assert_array_equal(data[name], by_hand[name])


def test_texts_of_ones_own_stand_alone(toy, tmp_path):
    texts = {"mine": "\n".join(ql.tasks.texts("prose", 2)), "list": ql.tasks.texts("code", 3)}
    alone = ql.recipes.ablate(toy, tmp_path, texts=texts, **{**SMALL, "controls": 0})
    assert alone.statistics["task"].values.tolist() == ["mine", "list"]
    assert alone.statistics["texts"].values.tolist() == [2, 2]
    assert alone.statistics.sizes["control"] == 0


def test_several_kinds_of_parts_and_what_nothing_matches_is_named(toy, tmp_path):
    how = {**SMALL, "layers": None, "controls": 1}
    texts = {"mine": ql.tasks.texts("code", 2)}
    done = ql.recipes.ablate(toy, tmp_path, tasks=["arithmetic"], texts=texts, of=["kind", "kind"], **how)
    assert done.statistics["task"].values.tolist() == ["arithmetic", "mine"]
    assert done.statistics["ablation"].values.tolist() == ["all linear_attention", "all full_attention"]
    assert done.without_controls == ("all linear_attention",)  # there are six such layers, and two others
    assert done.statistics["controls"].values.tolist() == [0, 1]


def test_a_sweep_goes_on_from_what_it_kept(done, toy, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("qwenlab.ablations.scoring"), "intervene", None)  # nothing is left to be read
    again = ql.recipes.ablate(toy, tmp_path, tasks=["code", "mqar:2"], seed=3, resume=kept, **SMALL)
    assert again.statistics.equals(done.statistics)


@pytest.mark.parametrize(
    ("written", "name", "lengths", "asked"),
    [
        ("prose", "prose", {20}, 19),
        ("mqar:3", "mqar(pairs=3)", {19}, 3),
        ("needle:24", "needle(length=24, position=0.5)", {24}, 1),
        ("needle:24:1", "needle(length=24, position=1)", {24}, 1),
        ("copying:13", "copying(length=13)", {13}, 2),
        ("induction:12", "induction(length=12)", {12}, 1),
    ],
)
def test_tasks_by_name(toy, written, name, lengths, asked):
    task = _task(toy, written, count=4, max_tokens=20, seed=0)
    assert task.name == name
    assert len(task.tokens) == 4
    assert {len(tokens) for tokens in task.tokens} == lengths
    assert {len(each) for each in task.asked} == {asked}
    assert _task(toy, written, count=4, max_tokens=20, seed=1) == task or ":" in written


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("mqr:8", r"There is no task 'mqr:8'; there are code, .*mqar:PAIRS.*\nDid you mean 'mqar:PAIRS'\?"),
        ("zzz", r"There is no task 'zzz'; there are code, prose, [^?]*$"),
        ("code:8", r"task 'code:8': code has no size\.\nWrite 'code'"),
        ("mqar", r"task 'mqar': write mqar:PAIRS, with numbers"),
        ("mqar:", r"task 'mqar:': write mqar:PAIRS, with numbers"),
        ("mqar:eight", r"task 'mqar:eight': write mqar:PAIRS, with numbers"),
        ("mqar:8:2", r"task 'mqar:8:2': write mqar:PAIRS, with numbers"),
        ("needle:64:2", r"give the share of the prose before the needle, from 0 to 1"),
        ("mqar:2.5", r"mqar"),
    ],
)
def test_tasks_that_are_none(toy, written, message):
    with pytest.raises(BadArgument, match=message):
        _task(toy, written, count=2, max_tokens=16, seed=0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(of=["mixxer"]), r"units\(of='mixxer'\): give one of 'layer', 'mixer'"),
        (dict(of="mixer"), r"of='mixer': give a list of kinds of parts"),
        (dict(score="los"), r"ablate\(score='los'\): give one of 'loss', 'accuracy', 'kl', 'agreement'"),
        (dict(match="size"), r"ablate\(match='size'\): give one of 'number', 'kind', 'parameters'"),
        (dict(controls=-1), r"ablate\(controls=-1\): give an integer number of controls for each ablation, 0 or more"),
        (
            dict(of=["gate"], match="parameters"),
            r"controls\(match='parameters'\): 'gate 0' has 1 parts and 0 parameters",
        ),
        (dict(count=26), r"texts\('code', count=26\): the domain has 25 texts"),
        (dict(tasks=["code", "code"]), r"several tasks are named 'code'"),
    ],
)
def test_what_it_refuses(toy, tmp_path, how, message):
    with pytest.raises(BadArgument, match=message):
        ql.recipes.ablate(toy, tmp_path, **{**SMALL, "tasks": ["code"], **how})
    assert not list(tmp_path.iterdir())
