"""The worker on a node of a cluster: it runs points one after another, in a kernel that stays warm."""

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
from typing import Any

from qwenlab import __version__
from qwenlab.errors import ClusterFailed, NeedsNotMet
from qwenlab.execution.engine import release
from qwenlab.experiments.store.store import store_at
from qwenlab.experiments.sweep.attempt import Job, Outcome, Stop, run_job
from qwenlab.experiments.sweep.run import WAIT

LARGEST = 64 * 2**20
"""Bytes up to which a notebook's folder is sent along."""


@dataclass(frozen=True)
class Folder:
    """A notebook's folder, to be sent to a node.

    files  path inside it -> content
    whole  whether that is all of it; where it is too large, the notebook alone is in it
    """

    files: dict[str, bytes]
    whole: bool = True


@dataclass(frozen=True)
class Terms:
    """What a worker has to know beside its points.

    version  of the driver's qwenlab
    store    its address
    witness  a file that the driver has put into the store's folder; None where the store is no folder
    needed   module that must be installed -> what to say where it is not
    """

    version: str
    store: str
    witness: str | None = None
    warm: bool = True
    needed: dict[str, str] = field(default_factory=dict)


class Worker:
    """Becomes a Ray actor. A warm kernel belongs to the thread that started it, so one thread runs all the points.

    folder  fetches the notebook's folder
    """

    def __init__(self, terms: Terms, folder: Callable[[], Folder]) -> None:
        self._terms, self._fetch = terms, folder
        self._where: Path | None = None
        self._thread = ThreadPoolExecutor(1, "qwenlab")
        self._stop = Stop()
        self._unpacked: TemporaryDirectory[str] | None = None

    async def run(self, job: Job) -> Outcome:
        """Run a point to its end. Raises ClusterFailed and NeedsNotMet where this node cannot run any."""
        return await self._in_the_thread(self._run, job)

    async def interrupt(self) -> None:
        """End what is running, in a way that the store can tell how it ended."""
        self._stop.now()

    async def close(self) -> None:
        """End the kernel, and remove what was unpacked here."""
        self._stop.now()
        await self._in_the_thread(release)
        if self._unpacked is not None:
            self._unpacked.cleanup()

    async def _in_the_thread(self, function: Any, *words: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *words)

    def _run(self, job: Job) -> Outcome:
        self._check()
        job = replace(job, notebook=self._notebook(job.notebook))
        try:
            outcome = run_job(job, store_at(self._terms.store), warm=self._terms.warm, stop=self._stop)
        except OSError as error:  # the disk or the network of this node: the other points may fare better
            return Outcome(job.point, "failed", reason=f"{socket.gethostname()}: {type(error).__name__}: {error}")
        if outcome.state == "elsewhere":
            self._stop.wanted.wait(WAIT)
        return outcome

    def _check(self) -> None:
        terms, here = self._terms, f"The node {socket.gethostname()}"
        if terms.version != __version__:
            raise ClusterFailed(
                f"{here} has qwenlab {__version__}, and the driver {terms.version}: the version is part of what a run "
                f"is.\nRun there: pip install qwenlab=={terms.version}"
            )
        if terms.witness is not None and not Path(terms.witness).exists():
            raise ClusterFailed(
                f"{here} does not see the store {terms.store}.\nGive a folder on a file system that every node shares, "
                "or an object store, such as s3://bucket/runs."
            )
        for module, complaint in terms.needed.items():
            if importlib.util.find_spec(module) is None:
                raise NeedsNotMet(f"{complaint}\n{here} lacks it.")

    def _notebook(self, path: Path) -> Path:
        """The notebook, in its own place where that holds the same files here, else unpacked from what was sent."""
        if self._where is None:
            sent = self._fetch()
            if all(_holds(path.parent / name, content) for name, content in sent.files.items()):
                self._where = path.parent
            elif sent.whole:
                self._unpacked = TemporaryDirectory(prefix="qwenlab-notebook-")
                self._where = _unpack(sent, Path(self._unpacked.name))
            else:
                raise ClusterFailed(
                    f"The node {socket.gethostname()} does not have {path} as the driver has it, and its folder is "
                    f"larger than {LARGEST // 2**20} MiB, so it is not sent along.\nKeep data elsewhere, or the folder "
                    "on a file system that every node shares."
                )
        return self._where / path.name


def folder_of(notebook: Path) -> Folder:
    """What stands beside a notebook and in folders there, but for hidden files, caches, and stores of runs."""
    files: dict[str, bytes] = {}
    left = LARGEST
    for place, folders, names in os.walk(notebook.parent):
        folders[:] = [each for each in folders if not (each.startswith((".", "__pycache__")) or _is_store(place, each))]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if not path.is_file():
                continue
            left -= path.stat().st_size
            if left < 0:
                return Folder({notebook.name: notebook.read_bytes()}, whole=False)
            files[path.relative_to(notebook.parent).as_posix()] = path.read_bytes()
    return Folder(files)


def _unpack(sent: Folder, where: Path) -> Path:
    for name, content in sent.files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    return where


def _is_store(place: str, folder: str) -> bool:
    return Path(place, folder, "store.json").is_file()


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
