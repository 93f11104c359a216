"""Run one point: attempt it, with retries, and record in each attempt's facts how it ended."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwenlab.errors import CellFailed, NotebookKernelDied, QwenlabError
from qwenlab.execution.engine import RunSettings
from qwenlab.execution.kernel import Kernel
from qwenlab.execution.notebook_runner import execute, failed_cell, read_notebook
from qwenlab.execution.redaction import Redaction
from qwenlab.experiments.plan.points import Point
from qwenlab.experiments.record import LOCK, METRICS, RUN, read_metrics
from qwenlab.experiments.store.store import FACTS, Store, write_json
from qwenlab.experiments.sweep import provenance

LOG, NOTEBOOK = "log.txt", "notebook.ipynb"
CLAIM_SECONDS = 2.0
"""Seconds between two tries to claim a point that another runner has claimed."""

State = Literal["finished", "failed", "interrupted", "elsewhere", "known"]
"""`elsewhere`: another runner has claimed the point; `known`: it was finished before."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to run one point, on any machine."""

    point: Point
    spec: dict[str, Any]  # as JSON, without `parameters` and `sweep`: the point has its values
    notebook: Path
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """How the run of a point ended."""

    point: Point
    state: State
    seconds: float = 0.0  # its duration, by a monotonic clock
    where: str = ""  # its folder
    reason: str = ""  # one line: why it did not finish
    used: dict[str, Any] = field(default_factory=dict)  # what the kernel reports at its end: memory, checkpoints, ...


class Cancellation:
    """Cancellation token that also kills running kernels."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._kernels: set[Kernel] = set()
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Start no new attempt, and end the running kernels."""
        self.requested.set()
        with self._lock:
            for kernel in self._kernels:
                kernel.kill()

    @contextmanager
    def limit(self, seconds: float | None) -> Iterator[tuple[Callable[[Kernel], None], threading.Event]]:
        """Kill a kernel on cancellation, and after `seconds`.

        Yields a function that registers the kernel, and an event that is set when its time is over.
        """
        timed_out, registered = threading.Event(), []

        def register(kernel: Kernel) -> None:
            registered.append(kernel)
            with self._lock:
                self._kernels.add(kernel)
            if self.requested.is_set():
                kernel.kill()

        def expire() -> None:
            timed_out.set()
            for kernel in registered:
                kernel.kill()

        timer = threading.Timer(seconds or 0, expire)
        timer.daemon = True
        if seconds:
            timer.start()
        try:
            yield register, timed_out
        finally:
            timer.cancel()
            with self._lock:
                self._kernels.difference_update(registered)


def run_job(job: Job, store: Store, *, warm: bool, bar: str = "", cancellation: Cancellation | None = None) -> Outcome:
    """Run a point, with the retries that its spec allows, unless it is in the store or claimed by another runner.

    bar  label of the progress bar; "" for none
    """
    cancellation, name = cancellation or Cancellation(), job.point.name
    with store.claim(name) as is_ours:
        if not is_ours:
            return Outcome(job.point, "elsewhere")
        if store.is_finished(name) and not job.force:
            return Outcome(job.point, "known")
        for number in range(1, job.spec["retries"] + 2):
            outcome = _Attempt(job, store, number, cancellation).run(warm=warm, bar=bar)
            if outcome.state != "failed" or cancellation.requested.is_set():
                break
    return outcome


class _Attempt:
    """One attempt, its folder, and the facts that are recorded about it."""

    def __init__(self, job: Job, store: Store, number: int, cancellation: Cancellation) -> None:
        self.job, self.store, self.cancellation = job, store, cancellation
        self.folder = store.new_attempt(job.point.name)
        self.redaction = Redaction.of(job.point.arguments)
        self.facts = provenance.initial_facts(job.point, job.spec, job.notebook, number)
        self.began = time.monotonic()

    def run(self, *, warm: bool, bar: str) -> Outcome:
        """Run the notebook, and keep the folder in the store."""
        write_json(self.folder / FACTS, self.facts)
        self.log(f"attempt {self.facts['attempt']} of {self.job.point.name} on {self.facts['machine']['host']}")
        used: dict[str, Any] = {}
        try:
            used = self._execute(warm, bar)
            self._require_metrics()
            ended = {"kind": "finished", "message": ""}
        except _Unfinished as unfinished:
            ended = unfinished.exit
        except (QwenlabError, OSError) as error:
            self.log(traceback.format_exc())
            ended = {"kind": type(error).__name__, "message": str(error)}
        kind = ended["kind"]
        state: State = "finished" if kind == "finished" else "interrupted" if kind == "interrupted" else "failed"
        used, ended = self.redaction.json(used), self.redaction.json(ended) | {"kind": kind}
        self.facts |= {"state": state, "exit": ended, "used": used, "ended": provenance.now()}
        self.facts["seconds"] = round(time.monotonic() - self.began, 3)
        try:
            self.log(f"{state} after {self.facts['seconds']:.1f} s {ended['message']}".rstrip())
            write_json(self.folder / FACTS, self.facts)
            (self.folder / LOCK).unlink(missing_ok=True)
            where = self.store.keep(self.folder, self.job.point.name, finished=state == "finished")
        except OSError as error:  # a full disk: the store still says that this attempt is not finished
            state, where = "failed", str(self.folder)
            ended = {"kind": "OSError", "message": f"{ended['message']} {error}".strip()}
        reason = (ended["message"].splitlines() or [""])[0]
        return Outcome(self.job.point, state, self.facts["seconds"], where, reason, used)

    def _execute(self, warm: bool, bar: str) -> dict[str, Any]:
        """Run the cells. Raises _Unfinished if the notebook did not run to its end."""
        notebook, _ = read_notebook(self.job.notebook)
        with self.cancellation.limit(self.job.spec["timeout"]) as (register, timed_out):
            settings = RunSettings(
                cwd=self.job.notebook.parent,
                source=self.job.notebook,
                output=self.folder / NOTEBOOK,
                seed=self.job.point.seed,
                environment={RUN: str(self.folder)},
                warm=warm,
                on_kernel_start=register,
            )
            try:
                done = execute(notebook, self.job.point.arguments, settings, bar=bar)
            except CellFailed as failure:
                cell = failed_cell(failure)
                self.log(cell.pop("traceback"))
                raise _Unfinished("cell failed", **cell) from failure
            except NotebookKernelDied as death:
                if self.cancellation.requested.is_set():
                    raise _Unfinished("interrupted", "stopped by the user") from death
                if timed_out.is_set():
                    raise _Unfinished("timeout", f"it took longer than {self.job.spec['timeout']:g} s") from death
                raise _Unfinished("kernel died", "the kernel died; the usual cause is memory") from death
        used: dict[str, Any] = done.metadata.papermill["qwenlab"]
        for source in used["reopened"]:
            self.log(f"{source} was changed by the previous run, and is opened again")
        for name, what in (("left_running", "left running"), ("changed", "changed by this run")):
            if used[name]:
                self.log(f"{what}: {', '.join(used[name])}; the kernel is replaced")
        return used

    def _require_metrics(self) -> None:
        """Raise _Unfinished if the run did not record every metric of the spec."""
        path = self.folder / METRICS
        recorded = set(read_metrics(path)["metric"]) if path.exists() else set()
        missing = [name for name in self.job.spec["metrics"] if name not in recorded]
        if missing:
            raise _Unfinished("metrics missing", f"the notebook ended without recording {', '.join(missing)}")

    def log(self, line: str) -> None:
        """Add a line to log.txt; a full disk is ignored."""
        with suppress(OSError), (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(self.redaction.text(f"{provenance.now()} {line}\n"))


class _Unfinished(Exception):
    """An attempt that did not run to its end; `exit` is what its facts say about that."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.exit: dict[str, Any] = {"kind": kind, "message": message, **more}
