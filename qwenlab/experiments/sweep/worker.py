"""The worker on a node of a Ray cluster: it runs one point at a time, in a kernel that stays warm."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qwenlab import __version__
from qwenlab.errors import ClusterFailed, NeedsNotMet
from qwenlab.execution.engine import release
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.sweep.attempt import CLAIM_SECONDS, Cancellation, Job, Outcome, run_job

LARGEST = 64 * 2**20
"""Bytes up to which a notebook's folder is sent to the nodes."""


@dataclass(frozen=True)
class NotebookFolder:
    """The files of a notebook's folder, by path; not `complete`: the notebook alone, since the folder is too large."""

    files: dict[str, bytes]
    complete: bool = True


@dataclass(frozen=True)
class WorkerSettings:
    """The settings that all jobs of a worker share."""

    version: str  # of the driver's qwenlab
    store: str  # its address
    marker: str | None = None  # a file that the driver created in the store's folder
    warm: bool = True
    required_modules: dict[str, str] = field(default_factory=dict)  # module -> the error message if it is missing


class Worker:
    """Becomes a Ray actor. A warm kernel belongs to the thread that started it, so one thread runs all the points.

    fetch_folder  returns the notebook's folder
    """

    def __init__(self, settings: WorkerSettings, fetch_folder: Callable[[], NotebookFolder]) -> None:
        self._settings, self._fetch_folder = settings, fetch_folder
        self._folder: Path | None = None
        self._thread = ThreadPoolExecutor(1, "qwenlab")
        self._cancellation = Cancellation()
        self._unpacked: TemporaryDirectory[str] | None = None

    async def run(self, job: Job) -> Outcome:
        """Run a point to its end. Raises ClusterFailed and NeedsNotMet if this node cannot run any."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, job)

    async def interrupt(self) -> None:
        """End the current run, and record in the store that it was interrupted."""
        self._cancellation.cancel()

    async def close(self) -> None:
        """End the kernel, and delete the unpacked notebook folder."""
        self._cancellation.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, release)
        if self._unpacked is not None:
            self._unpacked.cleanup()

    def _run(self, job: Job) -> Outcome:
        self._check()
        job, store = replace(job, notebook=self._notebook(job.notebook)), store_at(self._settings.store)
        try:
            outcome = run_job(job, store, warm=self._settings.warm, cancellation=self._cancellation)
        except OSError as error:  # the disk or the network of this node: the other points may succeed
            return Outcome(job.point, "failed", reason=f"{socket.gethostname()}: {type(error).__name__}: {error}")
        if outcome.state == "elsewhere":
            self._cancellation.requested.wait(CLAIM_SECONDS)
        return outcome

    def _check(self) -> None:
        settings, here = self._settings, f"The node {socket.gethostname()}"
        if settings.version != __version__:
            raise ClusterFailed(
                f"{here} has qwenlab {__version__}, and the driver {settings.version}: the version is part of a run's "
                f"identity.\nRun there: pip install qwenlab=={settings.version}"
            )
        if settings.marker is not None and not Path(settings.marker).exists():
            raise ClusterFailed(
                f"{here} does not see the store {settings.store}.\nGive a folder on a file system that every node "
                "shares, or an object store, such as s3://bucket/runs."
            )
        for module, message in settings.required_modules.items():
            if importlib.util.find_spec(module) is None:
                raise NeedsNotMet(f"{message}\n{here} lacks it.")

    def _notebook(self, path: Path) -> Path:
        """The notebook at its own path if this node has the same files there, else unpacked from the sent folder."""
        if self._folder is None:
            sent = self._fetch_folder()
            files = [(path.parent / name, content) for name, content in sent.files.items()]
            if all(file.is_file() and file.read_bytes() == content for file, content in files):
                self._folder = path.parent
            elif sent.complete:
                self._unpacked = TemporaryDirectory(prefix="qwenlab-notebook-")
                self._folder = Path(self._unpacked.name)
                for name, content in sent.files.items():
                    (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (self._folder / name).write_bytes(content)
            else:
                raise ClusterFailed(
                    f"The node {socket.gethostname()} does not have {path} as the driver has it, and its folder is "
                    f"larger than {LARGEST // 2**20} MiB, so it is not sent.\nKeep data elsewhere, or put the folder "
                    "on a file system that every node shares."
                )
        return self._folder / path.name


def folder_of(notebook: Path) -> NotebookFolder:
    """The files of a notebook's folder and its subfolders, without hidden files, caches, and stores of runs."""
    files, left = {}, LARGEST
    for parent, folders, names in os.walk(notebook.parent):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__pycache__")) and not Path(parent, name, "store.json").is_file()
        ]
        for path in (Path(parent, name) for name in names if not name.startswith(".") and Path(parent, name).is_file()):
            left -= path.stat().st_size
            if left < 0:
                return NotebookFolder({notebook.name: notebook.read_bytes()}, complete=False)
            files[path.relative_to(notebook.parent).as_posix()] = path.read_bytes()
    return NotebookFolder(files)
