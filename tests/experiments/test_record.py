"""`record` saves at once and atomically, only declared metrics, and each value once."""

import json
import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import qwenlab as ql
from qwenlab.errors import BadMetric, DuplicateMetric, UndeclaredMetric
from qwenlab.experiments.record import RUN, read_metrics
from qwenlab.testing.recordings import made_recording

matplotlib.use("agg")
METRICS = {
    "loss": {"units": "nat", "over": [], "pairs": None},
    "by_text": {"units": "nat", "over": ["text"], "pairs": "text"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "facts.json").write_text(json.dumps({"metrics": METRICS}))
    monkeypatch.setenv(RUN, str(tmp_path))
    return tmp_path


def by_text(values):
    return xr.DataArray(values, dims="text", coords={"text": [f"t{n}" for n in range(len(values))]})


def test_metrics_datasets_and_figures_are_saved(folder):
    dataset = xr.Dataset({"a": ("x", [1.0, 2.0])})
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    ql.experiments.record(
        loss=2.5, by_text=by_text([1.0, float("nan")]), datasets={"d": dataset}, figures={"f": figure}
    )
    ql.experiments.record(datasets={"r": made_recording()})
    table = read_metrics(folder / "metrics.parquet")
    assert table.to_dict("list") == {
        "metric": ["loss", "by_text", "by_text"],
        "labels": ["{}", '{"text": "t0"}', '{"text": "t1"}'],
        "value": pytest.approx([2.5, 1.0, float("nan")], nan_ok=True),
        "units": ["nat"] * 3,
    }
    xr.testing.assert_identical(xr.load_dataset(folder / "datasets" / "d.nc"), dataset)
    assert "routing" in ql.Recording.open(folder / "datasets" / "r.nc")
    assert sorted(each.name for each in (folder / "figures").iterdir()) == ["f.png", "f.svg"]
    assert (folder / "figures" / "f.png").read_bytes().startswith(b"\x89PNG")
    assert list(folder.rglob("*.part")) == []


def test_recorded_values_survive_the_death_of_the_process(folder):
    code = "import os, qwenlab as ql; ql.experiments.record(loss=1.0); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 9
    assert list(read_metrics(folder / "metrics.parquet")["value"]) == [1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (
            {"los": 1.0},
            UndeclaredMetric,
            r"'los' is not declared in spec\.yaml\. Did you mean 'loss'\? Declared: loss, by_",
        ),
        ({"loss": by_text([1.0])}, BadMetric, r"'loss' has the dimensions text; spec\.yaml declares none"),
        ({"by_text": 1.0}, BadMetric, r"'by_text' has the dimensions none; spec\.yaml declares text"),
        ({"by_text": xr.DataArray([1.0], dims="text")}, BadMetric, "'by_text' has no labels along text"),
        ({"by_text": by_text([])}, BadMetric, "'by_text' is empty: a metric needs at least one value"),
        ({"loss": "2"}, BadMetric, "'loss' must be a number or numbers"),
        ({"loss": None}, BadMetric, "'loss' must be a number or numbers"),
        ({"loss": float("inf")}, BadMetric, "'loss' is infinite at its only value: record NaN"),
        ({"loss": pd.Series([1.0])}, BadMetric, r"'loss' is a Series; a metric is a number or a DataArray"),
        ({"loss": xr.Dataset()}, BadMetric, "'loss' is a Dataset; a metric is"),
        ({"datasets": {"d": pd.DataFrame()}}, BadMetric, r"datasets\['d'\] is a DataFrame; give a Dataset"),
        ({"datasets": {"../d": xr.Dataset()}}, BadMetric, r"'\.\./d' cannot be a file name"),
        ({"figures": {"f": 1}}, BadMetric, r"figures\['f'\] is a int; give a matplotlib figure"),
    ],
)
def test_invalid_arguments_are_errors_and_nothing_is_saved(folder, arguments, error, complaint):
    with pytest.raises(error, match=complaint):
        ql.experiments.record(**arguments)
    assert [each.name for each in folder.iterdir() if each.is_file()] == ["facts.json"]


def test_a_value_is_recorded_once(folder):
    ql.experiments.record(loss=1.0, by_text=by_text([1.0]))
    with pytest.raises(DuplicateMetric, match=r"'by_text' already has a value at \{\"text\": \"t0\"\}"):
        ql.experiments.record(by_text=by_text([2.0, 3.0]))
    assert list(read_metrics(folder / "metrics.parquet")["value"]) == [1.0, 1.0]


def test_numbers_of_all_kinds_are_numbers(folder):
    ql.experiments.record(loss=np.float32(0.5))
    ql.experiments.record(by_text=by_text([True, False]))
    assert list(read_metrics(folder / "metrics.parquet")["value"]) == [0.5, 1.0, 0.0]


def test_outside_a_run_arguments_are_checked_and_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.delenv(RUN, raising=False)
    monkeypatch.chdir(tmp_path)
    ql.experiments.record(anything=1.0, datasets={"d": xr.Dataset()})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadMetric, match="must be a number or numbers"):
        ql.experiments.record(anything="x")
