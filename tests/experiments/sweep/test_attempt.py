"""Run one point for real: however it ends, the facts say how, and recorded metrics stay."""

import json
import threading
from pathlib import Path

import jupytext
import pytest

from qwenlab.errors import NotebookFailed
from qwenlab.experiments import plan
from qwenlab.experiments.record import read_metrics
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.sweep import provenance
from qwenlab.experiments.sweep.attempt import Cancellation, Outcome, run_job
from qwenlab.experiments.sweep.run import job
from tests.experiments.conftest import NOTEBOOK

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started


@pytest.fixture
def run(experiment, tmp_path):
    """Run an experiment of one point in this thread's warm kernel."""

    def run(cells=NOTEBOOK, cancellation=None, force=False, **changes) -> Outcome:
        planned = plan(experiment(cells, **changes))
        (point,) = planned.points
        return run_job(job(planned, point, force), store_at(tmp_path / "store"), warm=True, cancellation=cancellation)

    return run


def facts(outcome: Outcome) -> dict:
    return json.loads((Path(outcome.where) / "facts.json").read_text())


def loss(outcome: Outcome) -> list[float]:
    return list(read_metrics(Path(outcome.where) / "metrics.parquet")["value"])


def test_a_run_that_finished_has_everything_in_its_folder(run):
    outcome = run()
    assert outcome.state == "finished"
    assert sorted(each.name for each in Path(outcome.where).iterdir()) == [
        *("facts.json", "log.txt", "metrics.parquet", "notebook.ipynb")
    ]
    known = facts(outcome)
    assert (known["state"], known["exit"], known["parameters"]["x"]) == (
        "finished",
        {"kind": "finished", "message": ""},
        1,
    )
    assert known["spec"]["retries"] == 0
    assert known["used"]["peak_memory"] > 2**26
    assert known["code"]["source"] == provenance.code()["source"]
    assert known["seconds"] > 0
    cells = jupytext.read(Path(outcome.where) / "notebook.ipynb").cells
    assert {cell.metadata.papermill["status"] for cell in cells} == {"completed"}


def test_a_failing_cell_is_shown_and_what_was_recorded_stays(run):
    outcome = run(parameters={"mode": "raise"})
    known = facts(outcome)
    assert (outcome.state, known["state"]) == ("failed", "failed")
    assert known["exit"]["kind"] == "cell failed"
    assert known["exit"]["message"] == outcome.reason == "cell [5] raised ValueError: boom"
    assert 'raise ValueError("boom")' in known["exit"]["source"]
    assert "ValueError: boom" in (Path(outcome.where) / "log.txt").read_text()
    assert len(loss(outcome)) == 1


def test_a_kernel_that_is_killed_leaves_what_it_recorded(run):
    outcome = run(NOTEBOOK.replace("os._exit(3)", "os.kill(os.getpid(), 9)"), parameters={"mode": "die"})
    assert outcome.state == "failed"
    assert facts(outcome)["exit"]["kind"] == "kernel died"
    assert len(loss(outcome)) == 1
    statuses = [
        cell.metadata.papermill["status"] for cell in jupytext.read(Path(outcome.where) / "notebook.ipynb").cells
    ]
    assert statuses[-1] == "failed"


def test_a_run_that_takes_too_long_is_ended(run):
    run()  # the kernel is warm
    outcome = run(parameters={"mode": "slow"}, timeout="4 s")
    assert outcome.reason == "it took longer than 4 s"
    assert facts(outcome)["exit"]["kind"] == "timeout"
    assert outcome.seconds < 30


def test_a_retry_is_another_attempt(run, tmp_path):
    outcome = run(parameters={"mode": "once"}, retries=1)
    assert outcome.state == "finished"
    assert facts(outcome)["attempt"] == 2
    (first,) = (tmp_path / "store" / "small").glob("*.1")
    assert (
        json.loads((first / "facts.json").read_text())["exit"]["message"]
        == "cell [5] raised ValueError: the first time"
    )


def test_a_run_without_all_its_metrics_is_not_finished(run):
    cells = NOTEBOOK.replace("ql.experiments.record(loss", "if x > 5: ql.experiments.record(loss")
    outcome = run(cells)
    assert outcome.reason == "the notebook ended without recording loss"
    assert facts(outcome)["exit"]["kind"] == "metrics missing"


def test_what_is_finished_is_not_run_again_unless_forced(run):
    first = run()
    assert run().state == "known"
    forced = run(force=True)
    assert (forced.state, forced.where) == ("finished", first.where)
    assert loss(forced) == loss(first)  # the seed is part of the run


def test_cancellation_ends_the_kernel_and_is_not_a_failure(run):
    run()
    cancellation = Cancellation()
    threading.Timer(3, cancellation.cancel).start()
    outcome = run(cancellation=cancellation, parameters={"mode": "slow"}, retries=3)
    assert outcome.state == "interrupted"
    assert facts(outcome)["exit"]["message"] == "stopped by the user"
    assert len(loss(outcome)) == 1
    assert outcome.seconds < 30


def test_secrets_are_in_no_file_of_a_run(run):
    cells = NOTEBOOK.replace("x: int = 1", 'x: int = 1\nhf_token: str = ""').replace(
        'ValueError("boom")', "ValueError(hf_token)"
    )
    outcome = run(cells, parameters={"mode": "raise", "hf_token": "hf_secret99"}, secrets=["hf_token"])
    assert outcome.state == "failed"
    assert "hf_secret99" not in outcome.reason
    files = [each for each in Path(outcome.where).rglob("*") if each.is_file()]
    assert len(files) == 4
    assert [each.name for each in files if b"hf_secret99" in each.read_bytes()] == []


def test_a_clock_that_jumps_back_changes_no_decision(run, monkeypatch):
    times = iter(f"20{year:02d}-01-01T00:00:00+00:00" for year in range(90, 0, -1))
    monkeypatch.setattr(provenance, "now", lambda: next(times))
    outcome = run(parameters={"x": 3})
    assert outcome.state == "finished"
    assert facts(outcome)["began"] > facts(outcome)["ended"]
    assert 0 < facts(outcome)["seconds"] < 300
    assert run(parameters={"x": 3}).state == "known"


def test_the_wall_clock_is_read_in_one_place():
    """All durations come from a monotonic clock."""
    package = Path(provenance.__file__).parents[2]
    read = ("time.time(", "datetime.now", "datetime.today", "st_ctime")
    places = {
        file.relative_to(package).as_posix()
        for folder in ("experiments", "execution")
        for file in (package / folder).rglob("*.py")
        if any(word in file.read_text() for word in read)
    }
    assert places == {"experiments/sweep/provenance.py"}


def test_a_kernel_that_cannot_start_is_in_the_facts(run, monkeypatch):
    def unready(*words):
        raise NotebookFailed("the kernel could not be prepared: ValueError: x")

    monkeypatch.setattr("qwenlab.execution.kernel.Kernel.begin", unready)
    outcome = run()
    assert (outcome.state, facts(outcome)["exit"]["kind"]) == ("failed", "NotebookFailed")
