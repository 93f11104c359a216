"""A worker checks its node before it runs a point, and gets the notebook's folder."""

import asyncio
from functools import partial

import pytest

import qwenlab as ql
from qwenlab.errors import ClusterFailed, NeedsNotMet
from qwenlab.experiments.plan.points import plan
from qwenlab.experiments.sweep.run import job
from qwenlab.experiments.sweep.worker import NotebookFolder, Worker, WorkerSettings, folder_of
from tests.experiments.doubling import doubling


def run_one(worker, folder):
    planned = plan(folder)
    return asyncio.run(worker.run(job(planned, planned.points[0], force=False)))


def test_a_node_that_does_not_see_the_store_is_an_error(tmp_path):
    folder = doubling(tmp_path / "doubling")
    settings = WorkerSettings(ql.__version__, "/there", "/there/.marker-1")
    worker = Worker(settings, partial(folder_of, folder / "notebook.py"))
    with pytest.raises(ClusterFailed, match=r"does not see the store /there\.\nGive a folder on a file system"):
        run_one(worker, folder)


def test_a_node_without_an_extra_is_an_error(tmp_path):
    folder = doubling(tmp_path / "doubling")
    modules = {"no_such_module": "spec.yaml:3: it is not installed"}
    settings = WorkerSettings(ql.__version__, str(tmp_path), required_modules=modules)
    with pytest.raises(NeedsNotMet, match=r"spec.yaml:3: it is not installed\nThe node .* lacks it\."):
        run_one(Worker(settings, partial(folder_of, folder / "notebook.py")), folder)


def test_a_notebook_that_differs_on_the_node_and_is_too_large_to_send_is_an_error(tmp_path):
    folder = doubling(tmp_path / "doubling")
    sent = NotebookFolder({"notebook.py": b"other"}, complete=False)
    worker = Worker(WorkerSettings(ql.__version__, str(tmp_path)), lambda: sent)
    with pytest.raises(ClusterFailed, match=r"does not have .*notebook.py as the driver has it"):
        run_one(worker, folder)


def test_what_is_sent_leaves_out_caches_hidden_files_and_stores(tmp_path, monkeypatch):
    folder = doubling(tmp_path / "doubling")
    for name in ("helper.py", ".secret", "__pycache__/helper.pyc", "runs/store.json", "runs/big.bin", "data/a.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x" * 100)
    sent = folder_of(folder / "notebook.py")
    assert sorted(sent.files) == ["data/a.txt", "helper.py", "notebook.py", "spec.yaml"] and sent.complete
    monkeypatch.setattr("qwenlab.experiments.sweep.worker.LARGEST", 300)
    alone = NotebookFolder({"notebook.py": sent.files["notebook.py"]}, complete=False)
    assert folder_of(folder / "notebook.py") == alone
