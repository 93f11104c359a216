"""The papermill engine: its record of a run is exact."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest

from qwenlab.errors import CellFailed, NotebookKernelDied
from qwenlab.execution import engine
from qwenlab.execution.engine import release
from qwenlab.execution.secrets import Secret
from tests.execution.conftest import printed, statuses

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started


def test_a_cell_that_raised_failed_and_those_after_it_did_not_run(run, tmp_path):
    with pytest.raises(CellFailed, match=r"question\.py: cell \[3\] raised ValueError: boom"):
        run("x = 1", "raise ValueError('boom')", "y = 2", parameters="a = 1")
    assert statuses(tmp_path / "question.ipynb") == ["completed", "completed", "failed", "pending"]


def test_a_kernel_that_died_completed_nothing_more(run, tmp_path):
    with pytest.raises(NotebookKernelDied, match=r"question\.py: the kernel stopped before the notebook ended"):
        run("x = 1", "import os; os._exit(1)", "y = 2", parameters="a = 1")
    assert statuses(tmp_path / "question.ipynb") == ["completed", "completed", "failed", "pending"]
    assert jupytext.read(tmp_path / "question.ipynb").metadata.papermill["exception"] is True


def test_an_interrupted_notebook_is_not_completed(tmp_path):
    """Papermill itself writes that every cell completed after Ctrl-C."""
    source = tmp_path / "slow.py"
    source.write_text("# %% tags=['parameters']\na = 1\n\n# %%\nimport time\ntime.sleep(60)\n\n# %%\nb = 2\n")
    code = f"from qwenlab.execution import run_notebook; run_notebook({str(source)!r}, {str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    running = tmp_path / "slow.running.ipynb"
    while not (running.exists() and statuses(running) == ["completed", "running", "pending"]):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(2)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert statuses(tmp_path / "slow.failed.ipynb") == ["completed", "failed", "pending"]


def test_output_is_recorded_up_to_a_limit(run, monkeypatch):
    monkeypatch.setattr(engine, "OUTPUT_LIMIT", 10_000)
    slowly = "import time\nfor n in range(9):\n    print(str(n) * 2_000, flush=True)\n    time.sleep(0.2)"
    done = run(slowly, "print('after')")
    text = printed(done)
    assert "000" in text
    assert "888" not in text
    assert text.endswith("after")
    noted = [each.text for cell in done.cells for each in cell.get("outputs", []) if each.get("name") == "stderr"]
    assert "".join(noted).count("[qwenlab: output of this cell beyond 0 MiB was dropped]") == 1


def test_secrets_are_in_no_file(run, tmp_path):
    values = {"hf_token": Secret("hf_abcdef")}
    done = run("print(len(hf_token), hf_token)", parameters='hf_token: str = ""', values=values)
    assert printed(done) == "9 hf_abcdef"
    assert "hf_abcdef" not in (tmp_path / "question.ipynb").read_text()
    assert "•••" in (tmp_path / "question.ipynb").read_text()


def test_the_file_is_complete_at_every_moment(run, tmp_path):
    path = tmp_path / "question.ipynb"
    run(f"import json, pathlib; json.loads(pathlib.Path({str(path)!r}).read_text()); print('whole')", "1")
    nbformat.validate(nbformat.read(path, 4))
    assert list(tmp_path.glob(".*")) == []


def test_papermill_alone_can_use_it_by_name(tmp_path):
    """Through its entry point, in a loop: the kernel is kept, the names are not."""
    notebook = tmp_path / "in.ipynb"
    look = 'print("again" in dir(), a)\nagain = True\nimport os; print(os.getpid())'
    cells = f'# %% tags=["parameters"]\na = 1\n\n# %%\n{look}'
    jupytext.write(jupytext.reads(cells, "py:percent"), notebook)
    lines = []
    for number in range(2):
        out = papermill.execute_notebook(
            str(notebook),
            str(tmp_path / f"out{number}.ipynb"),
            {"a": number},
            engine_name="qwenlab",
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
        lines.append(printed(out).split("\n"))
    assert [line[0] for line in lines] == ["False 0", "False 1"]
    assert lines[0][1] == lines[1][1]
    assert Path(tmp_path / "out1.ipynb").exists()
    release()
    assert not os.path.exists(f"/proc/{lines[0][1]}")
