"""Every public function that measures a model says where its numbers come from, as `Recording.attrs` do."""

import inspect
import json

import pytest
import xarray as xr

import qwenlab as ql

TEXTS = ["The old house stood by the sea", "x = [1, 2, 3]\nfor i in x:\n    print(i)"]
ABOUT_TEXTS = {"recall_questions"}  # positions in texts: no model is run


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.fixture(scope="module")
def watched(toy):
    with ql.watch(toy, ql.probes.Residual()) as seen, seen.label("text"):
        ql.tasks.feed(toy, TEXTS)
    cropped = {"cropped_tokens", "cropped_labels"}  # of caches that a watch follows
    return {name: value for name, value in seen.recording().attrs.items() if name not in cropped}


def units(toy):
    return ql.ablations.units(toy, layers=[0])


MEASURING = {
    "measure": lambda toy: ql.tasks.measure(toy, [ql.tasks.text_task(toy, TEXTS)]),
    "losses": lambda toy: ql.tasks.losses(toy, TEXTS, labels=["text", "text"]),
    "sweep": lambda toy: ql.ablations.sweep(toy, units(toy), [ql.tasks.text_task(toy, TEXTS)], progress=False),
    "acceptance": lambda toy: ql.ablations.acceptance(toy, units(toy), TEXTS, labels=["text"] * 2, progress=False),
    "patching": lambda toy: ql.ablations.patching(toy, ["a b"], ["a c"], [3], sites="layers.0.mixer", progress=False),
    "acceptance_score": lambda toy: ql.speculative.acceptance_score(toy, TEXTS, labels=["text"] * 2),
    "step_times": lambda toy: ql.speculative.step_times(
        toy, ql.tasks.texts("code")[0], depth=1, repeats=1, progress=False
    ),
    "generate": lambda toy: ql.speculative.generate(toy, TEXTS, depth=1, max_new_tokens=2, progress=False).recording(),
    "trace": lambda toy: ql.speculative.trace(toy, TEXTS, depth=1, progress=False).recording(),
}


def test_no_measuring_function_is_left_out():
    """Those that return a Dataset; harness_scores needs its extra and is tested beside the others of that kind."""
    found = set()
    for package in (ql.tasks, ql.ablations, ql.decode):
        for name in package.__all__:
            function = getattr(package, name)
            if inspect.isfunction(function) and inspect.signature(function).return_annotation == "xr.Dataset":
                found.add(name)
    assert found - ABOUT_TEXTS - {"harness_scores"} == set(MEASURING) - {"generate", "trace"}


@pytest.mark.parametrize("name", MEASURING)
def test_it_says_where_it_comes_from(toy, watched, name):
    found = MEASURING[name](toy)
    assert set(watched) <= set(found.attrs)
    same = (
        "checkpoint",
        "checkpoint_hash",
        "family",
        "layer_types",
        "dtype",
        "device",
        "kernel_delta_rule",
        "interventions",
    )
    assert {key: found.attrs[key] for key in same} == {key: watched[key] for key in same}
    assert found.attrs["tokens"] == sum(json.loads(found.attrs["labels"]).values()) > 0
    assert all(isinstance(value, str | int | float) for value in found.attrs.values())


@pytest.mark.parametrize("name", ["measure", "losses", "acceptance_score"])
def test_the_texts_are_counted_as_a_watch_counts_them(toy, watched, name):
    found = MEASURING[name](toy)
    assert [found.attrs[key] for key in ("tokens", "sequences", "labels")] == [
        watched[key] for key in ("tokens", "sequences", "labels")
    ]


def test_an_edit_that_is_in_force_is_named(toy):
    with ql.intervene(toy, ql.interventions.Zero("layers.0.mixer")):
        found = ql.tasks.measure(toy, [ql.tasks.text_task(toy, TEXTS)])
    assert json.loads(found.attrs["interventions"]) == [str(ql.interventions.Zero("layers.0.mixer"))]


def test_the_attributes_are_kept_on_disk(toy, tmp_path):
    found = ql.tasks.measure(toy, [ql.tasks.text_task(toy, TEXTS)])
    found.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "scores.nc", engine="h5netcdf"), found)
