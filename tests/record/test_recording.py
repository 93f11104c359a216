"""The labelled result: what it holds, how it is kept on disk, how it refuses."""

import os
from contextlib import suppress

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

from qwenlab.errors import NewerRecording, NotARecording, ProbeNotRecorded, TruncatedRecording
from qwenlab.record import Recording, open
from qwenlab.testing.ledgers import made_ledger
from qwenlab.testing.recordings import made_recording
from qwenlab.testing.strategies import made_recordings
from qwenlab.testing.traces import made_trace


@pytest.fixture
def recording():
    return made_recording()


def test_a_node_is_the_dataset_of_its_probe(recording):
    assert recording["routing"].attrs["probe"] == "Routing"
    assert recording["routing"]["load"].dims == ("label", "fold", "layer", "expert")
    assert list(recording) == ["deltanet", "attention", "routing", "residual", "timing", "memory"]
    assert "routing" in recording
    assert "acceptance" not in recording
    assert recording.attrs["checkpoint"] == recording.checkpoint == "made-up"
    assert isinstance(recording.tree, xr.DataTree)


def test_a_probe_that_was_not_there_is_named():
    with pytest.raises(ProbeNotRecorded) as caught:
        made_recording(probes=["timing", "memory"])["routing"]
    assert str(caught.value) == (
        "No 'routing' was recorded.\nThis recording of made-up has: timing, memory.\n"
        "Watch with its probe: qwenlab.watch(model, qwenlab.probes.Routing())."
    )


def test_a_node_that_no_probe_writes_is_named(recording):
    with pytest.raises(
        ProbeNotRecorded, match=r"(?s)No probe writes a node 'router'.*Nodes are named deltanet, .*, trace, "
    ):
        recording["router"]


@pytest.mark.parametrize(
    ("node", "maker"),
    [
        ("rounds", "qwenlab.speculative.generate(checkpoint, prompts, depth=...).recording()"),
        ("trace", "qwenlab.speculative.trace(checkpoint, texts, depth=...).recording()"),
    ],
)
def test_a_node_of_decoding_says_what_makes_it(node, maker):
    with pytest.raises(ProbeNotRecorded) as caught:
        made_recording(probes=["timing"])[node]
    assert str(caught.value) == (
        f"No {node!r} was recorded.\nThis recording of made-up has: timing.\nIt comes from {maker}."
    )


def test_rounds_and_traces_are_saved_and_opened_again(tmp_path):
    recording = Recording({"rounds": made_ledger(), "trace": made_trace()}, {"checkpoint": "toy"})
    again = open(recording.save(tmp_path / "run.nc"))
    assert again.tree.identical(recording.tree)
    assert again["rounds"].attrs == recording["rounds"].attrs


def test_provenance_that_netcdf_cannot_hold_becomes_json():
    attrs = Recording({}, {"layers": ["a", "b"], "labels": {"x": 1}, "on": True, "n": np.int64(3), "none": None}).attrs
    assert attrs == {
        "format": "1",
        "package": "qwenlab",
        "layers": '["a", "b"]',
        "labels": '{"x": 1}',
        "on": "true",
        "n": 3,
        "none": "null",
    }


@pytest.mark.slow
@settings(max_examples=5)
@given(made_recordings())
def test_what_is_saved_is_opened_again(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("saved") / "run.nc"
    assert case.recording.save(path) == path
    again = open(path)
    assert again.tree.identical(case.recording.tree)
    assert list(again) == list(case.recording)
    assert again.attrs == case.recording.attrs


def test_names_kept_as_python_objects_are_saved_too(tmp_path):
    node = made_recording()["routing"]
    for name in ("label", "kind"):
        node[name] = node[name].astype(object)
    again = open(Recording({"routing": node}, {}).save(tmp_path / "run.nc"))
    assert again["routing"]["kind"].values.tolist() == node["kind"].values.tolist()


def test_no_texts_at_all_are_saved_too(tmp_path):
    """A ledger without rounds has labels, of which NetCDF cannot tell that they would be texts."""
    empty = Recording({"rounds": xr.Dataset({"label": ("round", np.array([], dtype=object))})}, {})
    assert Recording.open(empty.save(tmp_path / "none.nc"))["rounds"].sizes["round"] == 0


def test_attributes_of_any_plain_sort_survive(tmp_path):
    attrs = dict(empty="", one=[3], some=[1, 2], real=2.5, text="a\nb", names=["x", "y"])
    node = made_recording()["routing"].assign_attrs(attrs)
    again = open(Recording({"routing": node}, {"seed": "", "n": 1}).save(tmp_path / "run.nc"))
    assert again.attrs["seed"] == ""
    assert again["routing"].attrs["empty"] == ""
    assert again["routing"].attrs["some"].tolist() == [1, 2]


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(recording, tmp_path):
    path = tmp_path / "new" / "run.nc"
    recording.save(path)
    made_recording(seed=1).save(path)
    assert open(path).attrs["seed"] == 1
    assert os.listdir(path.parent) == ["run.nc"]


def test_saving_that_fails_leaves_the_old_file_and_nothing_beside_it(recording, tmp_path):
    path = recording.save(tmp_path / "run.nc")
    bad = made_recording(seed=1)
    bad.tree["routing"]["load"].attrs["units"] = object()
    with pytest.raises(TypeError):
        bad.save(path)
    assert open(path).attrs["seed"] == 0
    assert os.listdir(tmp_path) == ["run.nc"]


@pytest.mark.parametrize("left", [0, 10, 200, 0.5, 0.99])
def test_a_truncated_file_is_said_to_be_one(recording, tmp_path, left):
    path = recording.save(tmp_path / "run.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    with pytest.raises((TruncatedRecording, NotARecording)) as caught:
        open(path)
    assert str(path) in str(caught.value)
    if left >= 200 or isinstance(left, float):
        assert isinstance(caught.value, TruncatedRecording)
        assert "ends too early" in str(caught.value)
        assert "record it again" in str(caught.value)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.9])
def test_a_changed_byte_never_gives_other_numbers(tmp_path, place):
    recording = made_recording(probes=["routing"])
    path = recording.save(tmp_path / "run.nc")
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)
    with suppress(TruncatedRecording):
        assert open(path).tree.identical(recording.tree)


def test_no_file_no_netcdf_and_no_recording_are_distinguished(tmp_path):
    with pytest.raises(NotARecording, match="no such file"):
        open(tmp_path / "missing.nc")
    (tmp_path / "text.nc").write_text("a text")
    with pytest.raises(NotARecording, match="is not a NetCDF file"):
        open(tmp_path / "text.nc")
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(NotARecording, match="not a recording of qwenlab"):
        open(tmp_path / "other.nc")


def test_a_newer_format_says_which_qwenlab_wrote_it(recording, tmp_path):
    recording.attrs.update(format="2", qwenlab="9.0.0")
    path = recording.save(tmp_path / "run.nc")
    with pytest.raises(NewerRecording, match=r"(?s)format 2, written by qwenlab 9\.0\.0.*Install a newer qwenlab"):
        open(path)


def test_it_opens_in_a_fresh_process_without_torch(recording, tmp_path):
    import subprocess
    import sys

    path = recording.save(tmp_path / "run.nc")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from qwenlab.record import open; print(open({str(path)!r})['routing'].sizes['expert'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "16\n"
