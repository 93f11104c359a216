"""Runs sent to a real MLflow, kept in SQLite, and read back from it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pandas as pd
import pytest

import qwenlab as ql
from qwenlab import cli
from qwenlab.errors import ExportFailed, MissingExtra, UnknownRun
from qwenlab.execution.secrets import HIDDEN
from qwenlab.experiments.record import COLUMNS, write_table
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.store.store import write_json

ADDRESS = "0123456789abcdef"
LOSSES = [
    ("loss", '{"domain": "code", "layer": 3}', 0.5, "nats"),
    ("loss", '{"domain": "prose", "layer": 3}', float("nan"), "nats"),
    ("accuracy", "{}", 0.25, "1"),
]


def facts(address: str, **others: object) -> dict:
    """The facts of a finished run as `qwenlab run` writes them."""
    return {
        "format": 1,
        "state": "finished",
        "experiment": "recall",
        "address": address,
        "question": "Who recalls?",
        "notebook": "recall.py",
        "parameters": {
            "checkpoint": "toy-moe",
            "depth": None,
            "pairs": [4, 8],
            "note": "",
            "hf_token": HIDDEN,
            "seed": 3,
        },
        "seed": 3,
        "checkpoints": {"checkpoint": {"source": "toy-moe", "hash": "c0ffee"}},
        "metrics": {},
        "attempt": 1,
        "code": {"qwenlab": "0.1.0", "source": "5eed", "commit": "abc123", "changed": False},
        "machine": {},
        "versions": {},
        "began": "2026-01-02T03:04:05+00:00",
        "pid": 1,
        "exit": {"kind": "finished", "message": ""},
        "used": {},
        "ended": "2026-01-02T03:05:05+00:00",
        "seconds": 60.0,
    } | others


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Put a run into the store `runs` of an empty folder, in which the test then runs."""
    monkeypatch.chdir(tmp_path)

    def add(address: str, rows=LOSSES, attempt: str = "", **others: object) -> None:
        folder = tmp_path / "runs" / "recall" / f"{address}{attempt}"
        for name in ("notebook.ipynb", "log.txt", "figures/decay.png", "figures/decay.svg", "datasets/layers.nc"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{name} of {address}")
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), folder / "metrics.parquet")
        write_json(folder / "facts.json", facts(address, **others))

    return add


def test_without_mlflow_the_error_says_what_to_install(add, monkeypatch):
    add(ADDRESS)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # with which Python refuses to import it
    with pytest.raises(MissingExtra, match=r"Sending runs to MLflow needs .*\nRun: pip install 'qwenlab\[mlflow\]'"):
        ql.experiments.export_mlflow("recall", tracking_uri="sqlite:///mlflow.db")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """An MLflow database with all of its tables and nothing in it: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = pytest.importorskip("mlflow", reason="make remote installs it")
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
        yield path


@pytest.fixture
def server(add, empty_database, tmp_path):
    """A client of a tracking server of the test's own; artifacts go where the test runs."""
    import mlflow

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def export(server, **others):
    return ql.experiments.export_mlflow("recall", tracking_uri=server.tracking_uri, **others)


def there(server, experiment="recall"):
    """The runs that the server has."""
    found = server.get_experiment_by_name(experiment)
    return list(server.search_runs([found.experiment_id], order_by=["attributes.run_name"]))


@pytest.mark.remote
class TestARun:
    @pytest.fixture
    def sent(self, add, server):
        add(ADDRESS)
        assert export(server) == [f"recall/{ADDRESS}"]
        (run,) = there(server)
        return run

    def test_has_its_parameters_as_text_and_no_secret(self, sent):
        assert sent.data.params == {
            "checkpoint": "toy-moe",
            "depth": "None",
            "pairs": "[4, 8]",
            "note": "",
            "hf_token": HIDDEN,
            "seed": "3",
        }

    def test_has_a_metric_for_each_value_that_is_not_nan(self, sent):
        assert sent.data.metrics == {"loss/domain.code/layer.3": 0.5, "accuracy": 0.25}

    def test_has_tags_that_say_where_it_is_from(self, sent):
        ours = {name: value for name, value in sent.data.tags.items() if not name.startswith("mlflow.")}
        assert ours == {
            "qwenlab.address": ADDRESS,
            "qwenlab.state": "finished",
            "qwenlab.seed": "3",
            "qwenlab.commit": "abc123",
            "qwenlab.source": "5eed",
            "qwenlab.checkpoint_hash": "c0ffee",
            "qwenlab.notes": "NaN, and so left out: 1 of 3 values; metrics.parquet has them",
            "units.loss": "nats",
            "units.accuracy": "1",
        }

    def test_has_its_name_its_state_and_its_times(self, sent):
        assert (sent.info.run_name, sent.info.status) == (f"recall/{ADDRESS}", "FINISHED")
        assert (sent.info.start_time, sent.info.end_time) == (1767323045000, 1767323105000)

    def test_has_its_notebook_log_facts_and_figures_but_no_recording(self, sent, server, tmp_path):
        here = tmp_path / "back"
        here.mkdir()
        server.download_artifacts(sent.info.run_id, "", str(here))
        names = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
        plain = {"notebook.ipynb", "log.txt", "figures/decay.png", "figures/decay.svg"}
        assert names == plain | {"facts.json", "metrics.parquet"}
        assert {name: (here / name).read_text() for name in plain} == {name: f"{name} of {ADDRESS}" for name in plain}
        assert json.loads((here / "facts.json").read_text()) == facts(ADDRESS)


@pytest.mark.remote
class TestSending:
    def test_datasets_go_along_where_asked(self, add, server):
        add(ADDRESS)
        export(server, datasets=True)
        (run,) = there(server)
        assert [file.path for file in server.list_artifacts(run.info.run_id, "datasets")] == ["datasets/layers.nc"]

    def test_twice_sends_once_and_returns_what_is_new(self, add, server):
        add(ADDRESS)
        assert export(server) == [f"recall/{ADDRESS}"]
        add("f" * 16)
        assert export(server) == [f"recall/{'f' * 16}"]
        assert export(server) == []
        assert [run.data.tags["qwenlab.address"] for run in there(server)] == [ADDRESS, "f" * 16]

    def test_what_an_export_that_broke_off_left_is_replaced(self, add, server):
        experiment = server.create_experiment("recall")
        server.create_run(experiment, tags={"qwenlab.address": ADDRESS})
        others = server.create_run(experiment)
        add(ADDRESS)
        assert export(server) == [f"recall/{ADDRESS}"]
        assert {run.info.status for run in there(server) if run.info.run_id != others.info.run_id} == {"FINISHED"}
        assert server.get_run(others.info.run_id).info.lifecycle_stage == "active"

    def test_only_finished_runs_for_which_the_expression_holds_go(self, add, server):
        add("a" * 16, seed=1)
        add("b" * 16, seed=2)
        add("c" * 16, attempt=".1", seed=2, state="failed")
        assert export(server, where="seed = 2") == [f"recall/{'b' * 16}"]

    def test_more_values_than_one_request_takes_all_arrive(self, add, server):
        add(
            ADDRESS,
            [("share", json.dumps({"expert": n}), n / 8, "1") for n in range(1300)],
            parameters={f"p{n}": "x" for n in range(130)},
        )
        export(server)
        (run,) = there(server)
        assert run.data.metrics == {f"share/expert.{n}": n / 8 for n in range(1300)}
        assert len(run.data.params) == 130

    def test_a_store_on_an_object_store_is_sent_alike(self, add, server, tmp_path):
        add(ADDRESS)
        store = store_at("memory://export-test")
        store.files.put(f"{tmp_path}/runs/", f"{store.root}/", recursive=True)
        assert export(server, store=store, datasets=True) == [f"recall/{ADDRESS}"]
        (run,) = there(server)
        assert {file.path for file in server.list_artifacts(run.info.run_id)} >= {"notebook.ipynb", "figures"}
        assert [file.path for file in server.list_artifacts(run.info.run_id, "datasets")] == ["datasets/layers.nc"]

    def test_an_unknown_experiment_is_an_error_and_leaves_nothing(self, add, server):
        add(ADDRESS)
        with pytest.raises(UnknownRun, match=r"has no runs of 'recal'\. It has: recall"):
            ql.experiments.export_mlflow("recal", tracking_uri=server.tracking_uri)
        assert server.get_experiment_by_name("recal") is None


@pytest.mark.remote
class TestWhatMlflowCannotTake:
    def test_a_long_parameter_is_cut_and_says_so(self, add, server, capsys):
        add(ADDRESS, [], parameters={"prompt": "x" * 7000, "fits": "y" * 6000})
        export(server)
        (run,) = there(server)
        assert run.data.params["fits"] == "y" * 6000
        assert len(run.data.params["prompt"]) == 6000
        assert run.data.params["prompt"].endswith("xx [cut: 7000 characters]")
        note = "cut to 6000 characters: prompt; facts.json has it whole"
        assert run.data.tags["qwenlab.notes"] == note
        assert f"recall/{ADDRESS}: {note}" in capsys.readouterr().out

    def test_names_it_does_not_allow_are_changed_stay_apart_and_are_said(self, add, server):
        labels = ["a=b", "a?b", "x/../y", "..", "", "z" * 300, "ä b"]
        add(ADDRESS, [("loss", json.dumps({"text": label}), n, "1") for n, label in enumerate(labels)])
        export(server)
        (run,) = there(server)
        assert sorted(run.data.metrics.values()) == [0, 1, 2, 3, 4, 5, 6]
        by_value = {value: name for name, value in run.data.metrics.items()}
        assert by_value[6] == "loss/text.ä b"
        assert by_value[0].startswith("loss/text.a_b-")
        assert by_value[2].startswith("loss/text.x_.._y-")
        assert len(by_value[5]) == 244
        assert "for MLflow's sake: 4, such as 'loss/text.a=b' as 'loss/text.a_b-" in run.data.tags["qwenlab.notes"]

    def test_a_metric_with_such_a_name_keeps_its_units(self, add, server):
        add(ADDRESS, [("../loss (nats)", "{}", 1.0, "nats")])
        export(server)
        (run,) = there(server)
        ((name, value),) = run.data.metrics.items()
        assert value == 1.0
        assert run.data.tags[f"units.{name}"] == "nats"

    def test_what_the_server_refuses_is_an_error_without_the_password(self, add, server):
        server.delete_experiment(server.create_experiment("recall"))
        add(ADDRESS)
        with pytest.raises(
            ExportFailed, match=r"did not take 'recall'.*must be in the 'active' state(.|\n)*0 runs were"
        ):
            export(server)
        with pytest.raises(ExportFailed, match=r"MLflow at nosuch://host did not take") as error:
            ql.experiments.export_mlflow("recall", tracking_uri="nosuch://me:hidden@host")
        assert "hidden" not in str(error.value)


@pytest.mark.remote
def test_the_command_prints_what_it_sent(add, server, monkeypatch, capsys):
    add("a" * 16, seed=1)
    add("b" * 16, seed=2)
    words = ["recall", "--mlflow", server.tracking_uri, "--store", "runs", "--where", "seed = 2", "--datasets"]
    monkeypatch.setattr(sys, "argv", ["qwenlab", "runs", "export", *words])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    assert capsys.readouterr().out.splitlines()[-2:] == [f"recall/{'b' * 16}", "1 sent"]
    (run,) = there(server)
    assert [file.path for file in server.list_artifacts(run.info.run_id, "datasets")] == ["datasets/layers.nc"]


@pytest.fixture
def over_http(server, tmp_path):
    """The same server behind HTTP, which takes the artifacts too."""
    import mlflow

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--backend-store-uri", server.tracking_uri, "--artifacts-destination", tmp_path / "kept"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *map(str, words), "--port", str(port), "--workers", "1"],
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.2)
        yield mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.remote
@pytest.mark.slow
def test_a_server_over_http_gets_the_same(add, over_http, tmp_path):
    add(ADDRESS, parameters={f"p{n}": '"' * 6000 for n in range(130)})
    assert export(over_http) == [f"recall/{ADDRESS}"]
    (run,) = there(over_http)
    assert run.data.metrics == {"loss/domain.code/layer.3": 0.5, "accuracy": 0.25}
    assert run.data.params == {f"p{n}": '"' * 6000 for n in range(130)}
    (log,) = (tmp_path / "kept").rglob("log.txt")
    assert log.read_text() == f"log.txt of {ADDRESS}"
    assert export(over_http) == []
