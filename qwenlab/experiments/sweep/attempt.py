"""One point run: attempts, each in a folder of its own, until one finishes; the facts say how each ended."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwenlab.errors import CellFailed, NotebookKernelDied, QwenlabError
from qwenlab.execution.engine import Setting
from qwenlab.execution.kernel import Kernel
from qwenlab.execution.notebook import execute, failed_cell, read_notebook
from qwenlab.execution.redaction import Redaction
from qwenlab.experiments.plan.points import Point
from qwenlab.experiments.record import LOCK, METRICS, RUN, read_metrics
from qwenlab.experiments.store.store import FACTS, Store, write_json
from qwenlab.experiments.sweep import provenance

LOG, NOTEBOOK = "log.txt", "notebook.ipynb"
State = Literal["finished", "failed", "interrupted", "elsewhere", "known"]


@dataclass(frozen=True)
class Job:
    """What has to be known to run one point, anywhere."""

    point: Point
    spec: dict[str, Any]  # as JSON has it, without the values of parameters: the point has its own
    notebook: Path
    force: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a point's run ended.

    state    finished; failed; interrupted; elsewhere (another runner has it); known (it was finished before)
    seconds  it took, by a clock that does not jump
    where    its folder
    reason   in a line, why it did not finish
    """

    point: Point
    state: State
    seconds: float = 0.0
    where: str = ""
    reason: str = ""
    used: dict[str, Any] = field(default_factory=dict)


class Stop:
    """The wish to stop, and the kernels that have to be ended for it."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._kernels: set[Kernel] = set()
        self._lock = threading.Lock()

    def now(self) -> None:
        """Stop: no new attempt, and the running kernels end."""
        self.wanted.set()
        with self._lock:
            for kernel in self._kernels:
                kernel.kill()

    @contextmanager
    def watching(self, seconds: float | None) -> Iterator[tuple[Callable[[Kernel], None], threading.Event]]:
        """A function that takes the kernel once it is there, and an event that is set where its time ran out."""
        late, taken = threading.Event(), []

        def take(kernel: Kernel) -> None:
            taken.append(kernel)
            with self._lock:
                self._kernels.add(kernel)
            if self.wanted.is_set():
                kernel.kill()

        def expire() -> None:
            late.set()
            for kernel in taken:
                kernel.kill()

        timer = threading.Timer(seconds, expire) if seconds else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            yield take, late
        finally:
            if timer:
                timer.cancel()
            with self._lock:
                self._kernels.difference_update(taken)


def run_job(job: Job, store: Store, *, warm: bool, bar: str = "", stop: Stop | None = None) -> Outcome:
    """Run a point to its end, with the retries that its spec allows, unless the store has it or another runner does."""
    stop, name = stop or Stop(), job.point.name
    with store.claim(name) as ours:
        if not ours:
            return Outcome(job.point, "elsewhere")
        if store.is_finished(name) and not job.force:
            return Outcome(job.point, "known")
        for number in range(1, job.spec["retries"] + 2):
            outcome = _Attempt(job, store, number, stop).run(warm=warm, bar=bar)
            if outcome.state != "failed" or stop.wanted.is_set():
                break
    return outcome


class _Attempt:
    """One attempt, and what is written about it."""

    def __init__(self, job: Job, store: Store, number: int, stop: Stop) -> None:
        self.job, self.store, self.stop = job, store, stop
        self.folder = store.new_attempt(job.point.name)
        self.redaction = Redaction.of(job.point.given)
        self.facts = provenance.begun(job.point, job.spec, job.notebook, number)
        self.began = time.monotonic()

    def run(self, *, warm: bool, bar: str) -> Outcome:
        """Run the notebook, and keep what it leaves."""
        write_json(self.folder / FACTS, self.facts)
        self.log(f"attempt {self.facts['attempt']} of {self.job.point.name} on {self.facts['machine']['host']}")
        state: State = "failed"
        used: dict[str, Any] = {}
        try:
            used = self._execute(warm, bar)
            self._require_metrics()
            state, ended = "finished", {"kind": "finished", "message": ""}
        except _Ended as end:
            ended = end.account
            state = "interrupted" if ended["kind"] == "interrupted" else "failed"
        except (QwenlabError, OSError) as error:
            self.log(traceback.format_exc())
            ended = {"kind": type(error).__name__, "message": str(error)}
        used, ended = self.redaction.json(used), self.redaction.json(ended) | {"kind": ended["kind"]}
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
        reason = ended["message"].splitlines()[0] if ended["message"] else ""
        return Outcome(self.job.point, state, self.facts["seconds"], where, reason, used)

    def _execute(self, warm: bool, bar: str) -> dict[str, Any]:
        """Run the cells. Raises _Ended where they did not come to their end."""
        notebook, _ = read_notebook(self.job.notebook)
        with self.stop.watching(self.job.spec["timeout"]) as (take, late):
            setting = Setting(
                cwd=self.job.notebook.parent,
                source=self.job.notebook,
                output=self.folder / NOTEBOOK,
                seed=self.job.point.seed,
                environment={RUN: str(self.folder)},
                warm=warm,
                started=take,
            )
            try:
                done = execute(notebook, self.job.point.given, setting, bar=bar)
            except CellFailed as failure:
                account = failed_cell(failure)
                self.log(account.pop("traceback"))
                raise _Ended("cell failed", **account) from failure
            except NotebookKernelDied as death:
                if self.stop.wanted.is_set():
                    raise _Ended("interrupted", "stopped by the user") from death
                if late.is_set():
                    raise _Ended("timeout", f"it took longer than {self.job.spec['timeout']:g} s") from death
                raise _Ended("kernel died", "the kernel died; the usual cause is memory") from death
        used: dict[str, Any] = done.metadata.papermill["qwenlab"]
        for source in used["reopened"]:
            self.log(f"{source} was changed by the run before, and is opened again")
        if used["left_running"]:
            self.log(f"left running: {', '.join(used['left_running'])}; the kernel is replaced")
        if used["changed"]:
            self.log(f"changed by this run: {', '.join(used['changed'])}; the kernel is replaced")
        return used

    def _require_metrics(self) -> None:
        """A run that has not recorded all it should is not finished."""
        path = self.folder / METRICS
        recorded = set(read_metrics(path)["metric"]) if path.exists() else set()
        missing = [name for name in self.job.spec["metrics"] if name not in recorded]
        if missing:
            raise _Ended("metrics missing", f"the notebook ended without recording {', '.join(missing)}")

    def log(self, line: str) -> None:
        """Add to log.txt. A disk that is full has no log."""
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(self.redaction.text(f"{provenance.now()} {line}\n"))
        except OSError:
            return


class _Ended(Exception):
    """An attempt that did not come to its end, and why."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.account: dict[str, Any] = {"kind": kind, "message": message, **more}
