"""Reference results: what is equal bit for bit, what is reported, and how names are mapped."""

import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from evidence.reference import intended, names
from evidence.reference.__main__ import report
from evidence.reference.compare import compare, difference
from evidence.reference.results import Timed, flattened, load, save

NAN = np.frombuffer(np.uint64(0x7FF8000000000001).tobytes(), np.float64)


def result(**changed):
    return {"loss": np.array([1.0, np.nan]), "loss @units": "nat", "tokens": np.array([3, 4]), **changed}


def test_the_same_result_is_equal():
    found = compare(result(), result())
    assert found.equal
    assert (found.arrays, found.texts) == (2, 1)


@pytest.fixture(autouse=True)
def _nothing_is_intended(monkeypatch):
    monkeypatch.setattr(intended, "INTENDED", {})


def test_what_is_intended_is_counted_with_its_reason(monkeypatch):
    monkeypatch.setattr(intended, "INTENDED", {r"^a/b: loss @units: ": "one unit"})
    found = compare(result(), result(**{"loss @units": "nat/token"}), case="a/b")
    assert found.equal and found.intended == {"one unit": 1}
    assert not compare(result(), result(**{"loss @units": "nat/token"}), case="a/c").equal


def test_every_nan_is_equal():
    assert compare(result(), result(loss=np.array([1.0, NAN[0]]))).equal


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"loss": np.array([np.nextafter(1.0, 2), np.nan])}, "loss: 1 of 2 differ, by 2.22e-16 at most"),
        ({"loss": np.array([1.0, 2.0])}, "loss: 1 of 2 differ, by 0 at most"),
        ({"loss": np.array([1.0, np.nan], np.float32)}, "loss: float64 (2,) became float32 (2,)"),
        ({"loss": np.array([[1.0, np.nan]])}, "loss: float64 (2,) became float64 (1, 2)"),
        ({"tokens": np.array([3, 6])}, "tokens: 1 of 2 differ, by 2 at most"),
        ({"tokens": "3 4"}, "tokens: array([3, 4]) became '3 4'"),
        ({"loss @units": "token"}, "loss @units: 'nat' became 'token'"),
        ({"more": np.array(1)}, "more: extra after"),
    ],
)
def test_a_difference_is_named(changed, line):
    found = compare(result(), result(**changed))
    assert not found.equal
    assert found.differences == [line]
    assert line in str(found)


def test_minus_zero_is_not_zero():
    assert difference(np.array([0.0]), np.array([-0.0])) == "1 of 1 differ, by 0 at most"


def test_what_is_missing_is_named():
    assert compare(result(more=np.array(1)), result()).differences == ["more: missing after"]


@pytest.mark.parametrize(
    "nothing", [{}, {"loss": np.zeros(0)}, {"loss": np.full(3, np.nan), "loss @units": "nat"}, {"units": "nat"}]
)
def test_a_result_without_a_value_is_not_equal(nothing):
    assert compare(nothing, nothing).differences == [
        f"nothing {side}: no array with a value other than NaN" for side in ("before", "after")
    ]


def test_a_case_that_raised_on_both_sides_is_not_equal():
    assert compare({"error": "boom"}, {"error": "boom"}).differences == ["failed before: boom", "failed after: boom"]


def test_sentences_may_be_reworded():
    found = compare(result(**{"loss @long_name": "what it is"}), result(**{"loss @long_name": "mean loss"}))
    assert found.equal and found.reworded == 1


def test_renamed_fields_and_texts_are_mapped(monkeypatch):
    before = {"rounds/harm": np.array(1.0), "rounds/harm dims": "label", "rounds @edits": "zero('layers.0.mixer')"}
    after = {"rounds/effect": np.array(1.0), "rounds/effect dims": "group", "rounds @edits": "Zero('layers.0.mixer')"}
    monkeypatch.setattr(names, "TEXTS", {})
    monkeypatch.setattr(names, "FIELDS", {})
    assert len(compare(before, after).differences) == 5
    monkeypatch.setattr(names, "FIELDS", {"rounds/harm": "rounds/effect", "label": "group"})
    monkeypatch.setattr(names, "TEXTS", {"zero": "Zero"})
    assert compare(before, after).equal
    assert compare(before, before).equal, "a checkout with the names before"
    assert compare({"label": np.array(["zero", "one"])}, {"group": np.array(["Zero", "one"])}).equal


def test_names_of_coordinates_are_in_order_after_renaming(monkeypatch):
    monkeypatch.setattr(names, "FIELDS", {"of": "unit"})
    assert difference("layer of task", "layer task unit") == ""
    assert difference("layer of task", "layer of unit") != ""


def test_an_object_is_found_under_either_name(monkeypatch):
    monkeypatch.setattr(names, "RENAMED", {"tasks.old_texts": "tasks.texts", "tasks.measure": "tasks.not_there_yet"})
    assert names.get("tasks.old_texts") is names.get("tasks.texts")
    assert names.get("tasks.measure") and names.path("tasks.measure") == "tasks.measure"
    monkeypatch.setattr(names, "REMOVED", {"tasks.measure"})
    with pytest.raises(names.Removed):
        names.get("tasks.measure")


def test_keywords_arguments_and_attributes_are_mapped(monkeypatch):
    monkeypatch.setattr(names, "KEYWORDS", {"tasks.texts": {"number": "count"}})
    assert len(names.get("tasks.texts")("code", number=2)) == 2
    monkeypatch.setattr(names, "ARGUMENTS", {"kl": ("divergence", "tasks.texts"), "judge": ("verify", "tasks.no")})
    assert (names.text("kl"), names.text("judge"), names.text("loss")) == ("divergence", "judge", "loss")
    monkeypatch.setattr(names, "ATTRIBUTES", {"size": "shape", "ndim": "axes"})
    assert names.of(np.zeros(3), "size") == (3,) and names.of(np.zeros(3), "ndim") == 1


def test_results_are_flattened_and_saved(tmp_path):
    dataset = xr.Dataset({"loss": ("text", [1.0, 2.0], {"units": "nat"})}, attrs={"created": "today", "depth": 2})
    flat = flattened({"of": dataset, "logits": torch.ones(2, dtype=torch.bfloat16), "rows": [(1, 2), "end"]})
    save(flat, tmp_path / "case.pickle")
    found = load(tmp_path / "case.pickle")
    assert compare(found, flat).equal
    assert sorted(found) == [
        *("logits", "of @depth", "of coords", "of/loss", "of/loss @units", "of/loss dims", "rows/0", "rows/1"),
    ]


def test_texts_of_every_library_are_flattened():
    table = pd.DataFrame({"text": pd.array(["a", "b"], dtype="string"), "object": np.array(["a", 1], object)})
    flat = flattened(table)
    assert {name: value.tolist() for name, value in flat.items()} == {"text": ["a", "b"], "object": ["a", "1"]}
    assert compare(flat | result(), flat | result()).equal
    modern = flattened(xr.Dataset({"run": ("run", np.array(["a"], np.dtypes.StringDType()))}))
    assert modern["run"].dtype == "<U1"


def test_temporary_folders_have_no_name():
    assert flattened({"checkpoint": f"{tempfile.mkdtemp()}/tiny"}) == {"checkpoint": "TEMPORARY/tiny"}


def test_of_measured_times_only_the_shape_is_kept():
    timing = xr.Dataset({"seconds": ("layer", [0.1, 0.2]), "calls": ("layer", [1, 1])})
    assert flattened(Timed(timing))["seconds"] == "float64 (2,)"
    assert flattened(Timed(timing))["calls"].tolist() == [1, 1]
    assert flattened(timing)["seconds"].tolist() == [0.1, 0.2]


def test_every_case_is_reported(tmp_path, capsys):
    sides = tmp_path / "before", tmp_path / "after"
    for side in sides:
        side.mkdir()
        save(result(), side / "edits+toy+zero.pickle")
    assert report(*sides) == 0
    save(result(), sides[0] / "edits+toy+one.pickle")
    save(result(), sides[1] / "edits+toy+two.pickle")
    assert report(*sides) == 2
    lines = capsys.readouterr().out
    assert "equal   edits/toy/zero: 2 arrays, 1 texts" in lines
    assert "DIFFERS edits/toy/one: 2 arrays, 1 texts\n        nothing after" in lines
    assert "DIFFERS edits/toy/two: 0 arrays, 0 texts\n        nothing before" in lines
    assert "3 cases with 4 arrays, 2 not equal" in lines


def test_no_cases_are_not_equal(tmp_path):
    assert report(tmp_path / "before", tmp_path / "after") == 1
