"""Queries of a store: runs, metrics, datasets; each finished point once."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from qwenlab import experiments
from qwenlab.errors import BadArgument, CannotCompare, UnknownRun
from qwenlab.experiments.store.catalogue import INDEX
from tests.experiments.conftest import written


@pytest.fixture
def store(tmp_path):
    for number in range(1, 5):
        rows = [("loss", {"text": text}, number + text / 10, "nat") for text in (0, 1)]
        written(tmp_path, number, rows, parameters={"x": number, "mode": "well", "kinds": ["a"]}, seed=number % 2)
    written(tmp_path, 9, [("loss", {"text": 0}, 99.0, "nat")], state="failed", exit={"kind": "cell failed"})
    written(tmp_path, 8, [], state="running")
    written(tmp_path, 7, [("gain", {}, 1.0, "1")], experiment="other")
    return tmp_path


def test_one_row_per_finished_run(store):
    table = experiments.find("small", store=store)
    assert list(table["params.x"]) == [1, 2, 3, 4]
    assert list(table["metrics.loss (nat)"]) == pytest.approx([1.05, 2.05, 3.05, 4.05])
    assert table["params.kinds"].iloc[0] == '["a"]'
    assert "metrics.gain (1)" not in table
    assert table["name"].is_unique


def test_of_a_plan_only_the_runs_of_its_points(experiment, tmp_path):
    old, now = (experiments.plan(experiment(parameters={"x": x})) for x in (1, 2))
    for planned in (old, now):
        (point,) = planned.points
        written(tmp_path, int(point.address, 16), [("loss", {}, 1.0, "nat")], parameters=point.parameters)
    assert len(experiments.find("small", store=tmp_path)) == 2
    assert list(experiments.find(now, store=tmp_path)["params.x"]) == [2]
    assert list(experiments.metrics(now, "loss", store=tmp_path)["name"]) == [now.points[0].name]


def test_unfinished_runs_are_found_by_their_state(store):
    assert list(experiments.find(state="failed", store=store)["exit"]) == ["cell failed"]
    assert list(experiments.find(state="broken_off", store=store)["name"]) == [f"small/{8:016x}"]
    assert len(experiments.find(state=None, store=store)) == 7
    with experiments.store_at(store).claim(f"small/{8:016x}"):
        assert len(experiments.find(state="running", store=store)) == 1


def test_questions_are_sql(store):
    assert list(experiments.find("small", where='"params.x" > 2 AND seed = 0', store=store)["params.x"]) == [4]
    with pytest.raises(BadArgument, match=r'where=\'x > 2\': Binder Error.*\nThe columns are: name, .*"params\.x"'):
        experiments.find(where="x > 2", store=store)
    with pytest.raises(BadArgument, match=r"find\(state='done'\): give one of 'finished', 'running', .*None"):
        experiments.find(state="done", store=store)
    with pytest.raises(UnknownRun, match=r"has no runs of 'smal'\. It has: other, small"):
        experiments.find("smal", store=store)


def test_an_empty_store_has_no_runs(tmp_path):
    assert len(experiments.find(store=tmp_path / "none")) == 0
    assert not (tmp_path / "none").exists()


def test_metrics_are_tidy(store):
    table = experiments.metrics("small", "loss", store=store)
    assert list(table.columns) == ["name", "seed", "params.x", "metric", "text", "value", "units"]
    assert len(table) == 8
    assert table.set_index(["params.x", "text"])["value"][(3, 1)] == pytest.approx(3.1)
    with pytest.raises(UnknownRun, match=r"None of these 4 runs recorded 'lost'\. Their metrics: loss"):
        experiments.metrics("small", "lost", store=store)


def test_changes_in_the_store_are_found(store):
    assert len(experiments.find("small", store=store)) == 4
    assert (store / INDEX / "runs.parquet").is_file()
    written(store, 5, [("loss", {"text": 0}, 5.0, "nat")], parameters={"x": 5})
    assert len(experiments.find("small", store=store)) == 5
    shutil.rmtree(store / "small" / f"{5:016x}")
    facts = store / "small" / f"{1:016x}" / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"seconds": 77.0}))
    table = experiments.find("small", store=store)
    assert list(table["params.x"]) == [1, 2, 3, 4]
    assert table["seconds"].max() == 77
    assert len(experiments.metrics("small", "loss", store=store)) == 8


@pytest.mark.parametrize("damage", ["not parquet", ""])
def test_a_damaged_index_is_rebuilt(store, damage):
    experiments.find(store=store)
    (store / INDEX / "runs.parquet").write_text(damage)
    assert len(experiments.find("small", store=store)) == 4


@pytest.mark.parametrize("facts", ["", "{", "[]", '{"format": 1}'])
def test_a_half_written_run_is_skipped(store, facts):
    folder = store / "small" / f"{6:016x}.1"
    folder.mkdir()
    (folder / "facts.json").write_text(facts)
    (store / "small" / f"{6:016x}.2").mkdir()
    (store / "demo").mkdir()
    assert len(experiments.find(state=None, store=store)) == 7


def test_one_run_by_the_beginning_of_its_name(store):
    assert experiments.facts("other", store=store)["address"] == f"{7:016x}"
    assert experiments.facts(f"small/{3:016x}", store=store)["folder"] == f"small/{3:016x}"
    with pytest.raises(UnknownRun, match="'small' is the beginning of several names: small/"):
        experiments.facts("small", store=store)
    with pytest.raises(UnknownRun, match=r"'a\(' is not the name of a run"):
        experiments.facts("a(", store=store)
    with pytest.raises(UnknownRun, match=r"'none' is not the name of a run.*\n?.*qwenlab runs list"):
        experiments.facts("none", store=store)


class TestDatasets:
    def save(self, store, number, labels, value=1.0):
        path = store / "small" / f"{number:016x}" / "datasets" / "half_life.nc"
        path.parent.mkdir()
        array = xr.DataArray(np.full(len(labels), value), dims="layer", coords={"layer": labels}, name="half_life")
        array.to_netcdf(path, engine="h5netcdf")

    def test_are_joined_on_their_labels(self, store):
        for number in range(1, 5):
            self.save(store, number, [0, 1, 2], float(number))
        joined = experiments.datasets("half_life", "small", store=store)
        assert dict(joined.sizes) == {"run": 4, "layer": 3}
        assert list(joined["params.x"].values) == [1, 2, 3, 4]
        assert joined["half_life"].sel(run=f"small/{2:016x}").values.tolist() == [2.0, 2.0, 2.0]

    def test_with_other_labels_are_not_joined(self, store):
        for number in range(1, 5):
            self.save(store, number, [0, 1, 3 if number == 2 else 2])
        with pytest.raises(CannotCompare, match="The datasets 'half_life' of the runs do not have the same labels"):
            experiments.datasets("half_life", "small", store=store)

    def test_that_are_missing_are_named(self, store):
        self.save(store, 1, [0])
        with pytest.raises(UnknownRun, match=rf"run .*{2:016x} has no dataset 'half_life'\. Its datasets: none"):
            experiments.datasets("half_life", "small", store=store)


def test_prune_deletes_what_did_not_finish(store):
    folders = experiments.prune(store=store)
    assert {each.name for each in folders} == {f"{9:016x}.1", f"{8:016x}.1"}
    assert all(each.is_dir() for each in folders)
    with experiments.store_at(store).claim(f"small/{8:016x}"):
        assert [each.name for each in experiments.prune(store=store, delete=True)] == [f"{9:016x}.1"]
    assert len(experiments.find(state=None, store=store)) == 6


def test_tables_are_frames(store):
    assert isinstance(experiments.find(store=store), pd.DataFrame)
