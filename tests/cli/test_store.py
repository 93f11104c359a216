"""`qwenlab runs ...` over runs as `qwenlab run` leaves them."""

import numpy as np
import pytest
from typer.testing import CliRunner

from qwenlab.cli import app
from tests.experiments.conftest import written

WIDE = {"COLUMNS": "240", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture
def runs(tmp_path):
    """Run `qwenlab runs ...` on a store with two runs, one of them a little higher, and a failure."""
    values = np.linspace(1, 3, 30)
    for number, shift in ((1, 0), (2, 0.1)):
        rows = [("loss", {"text": text}, float(value + shift), "nat") for text, value in enumerate(values)]
        written(tmp_path, number, rows, parameters={"x": number})
    written(tmp_path, 3, [], state="failed", exit={"kind": "cell failed", "message": "cell [1] raised"})

    def run(*words, store=tmp_path):
        return CliRunner().invoke(app, ["runs", *words, *(["--store", str(store)] if store else [])], env=WIDE)

    return run


NAMES = [f"small/{number:016x}" for number in (1, 2, 3)]


def test_list(runs):
    shown = runs("list")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in NAMES)
    assert "cell failed" in shown.output
    only = runs("list", "small", "--state", "finished", "--where", '"params.x" = 2').output
    assert NAMES[1] in only
    assert NAMES[0] not in only


def test_show(runs):
    shown = runs("show", NAMES[1])
    assert shown.exit_code == 0, shown.output
    assert '"state": "finished"' in shown.output
    assert shown.output.count("loss") >= 30
    assert f'"folder": "{NAMES[1]}"' in shown.output


def test_diff_of_two_runs(runs):
    shown = runs("diff", NAMES[0], NAMES[1], "--exit-code")
    assert shown.exit_code == 1
    assert "parameters.x" in shown.output
    row = next(line for line in shown.output.splitlines() if line.strip().startswith("loss"))
    assert "+0.1" in row
    assert "30 text" in row
    assert "yes (worse)" in row
    assert runs("diff", NAMES[0], NAMES[0], "--exit-code").exit_code == 0


def test_diff_of_two_stores(runs, tmp_path):
    other = tmp_path.parent / f"{tmp_path.name}-other"
    written(other, 1, [("loss", {"text": text}, 9.0, "nat") for text in range(30)], parameters={"x": 1})
    shown = runs("diff", str(tmp_path), str(other), store=None)
    assert shown.exit_code == 0, shown.output
    assert "1 run compared" in shown.output


def test_report(runs, tmp_path):
    shown = runs("report", "small", "--out", str(tmp_path / "page.html"))
    assert shown.exit_code == 0, shown.output
    assert "Does it run?" in (tmp_path / "page.html").read_text()


def test_prune_deletes_only_when_told(runs, tmp_path):
    folder = tmp_path / f"{NAMES[2]}.1"
    assert "1 would be deleted: --yes deletes them" in runs("prune").output
    assert folder.is_dir()
    assert "1 deleted" in runs("prune", "--yes").output
    assert not folder.exists()


def test_an_error_is_its_message(runs):
    shown = runs("show", "none")
    assert shown.exit_code != 0
    assert "'none' is not the name of a run" in str(shown.exception)
