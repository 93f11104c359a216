"""The papermill engine `qwenlab`: exact cell states, atomic files, and kernels that stay warm."""

from __future__ import annotations

import atexit
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine as PapermillEngine, NotebookExecutionManager

from qwenlab.errors import NotebookFailed
from qwenlab.execution.kernel import Kernel
from qwenlab.execution.redaction import Redaction
from qwenlab.execution.secrets import Secret, environment_of, inject
from qwenlab.record.whole_files import replacing

OUTPUT_LIMIT = 4 * 2**20
"""Characters of output that are recorded per cell."""

LIFETIME = 64
"""Notebooks after which a warm kernel is replaced."""

GROWTH = 2 * 2**30
"""Bytes by which a warm kernel may have grown since its first notebook before it is replaced."""


@dataclass(frozen=True)
class RunSettings:
    """How to run one notebook."""

    cwd: Path  # working directory of its cells
    source: Path | None = None  # the file it was read from
    output: Path | None = None  # the file for the executed notebook, updated after every cell
    seed: int = 0  # of every random number generator
    environment: Mapping[str, str] = field(default_factory=dict)  # variables that are set for it
    warm: bool = False  # keep the kernel, with its open checkpoints, for the next notebook of this thread
    secrets: Mapping[str, Secret] = field(default_factory=dict)  # the kernel gets them through its environment
    on_kernel_start: Callable[[Kernel], None] = lambda kernel: None  # so that another thread can end the kernel


class Engine(PapermillEngine):
    """The engine of `run_notebook` and of `papermill --engine qwenlab`.

    Called by papermill itself, the engine keeps its kernel warm: notebooks that one Python process executes one after
    another share the kernel, each with its own namespace.
    """

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: Any = True,
        log_output: bool = False,
        settings: RunSettings | None = None,
        **others: Any,
    ) -> Any:
        """Run every cell. Raises DeadKernelError; for a failed cell, papermill raises afterwards."""
        if settings is None:  # called by papermill itself, which writes to addresses such as s3://... on its own
            is_local = output_path is not None and "://" not in str(output_path)
            settings = RunSettings(Path.cwd(), output=Path(str(output_path)) if is_local else None, warm=True)
        if settings.secrets:
            inject(nb, settings.secrets)
        recorder = RunRecorder(nb, settings, log_output=log_output, progress_bar=progress_bar)
        recorder.notebook_start()
        try:
            nb.metadata.papermill["qwenlab"] = _run(recorder, kernel_name, settings, others.get("execution_timeout"))
        finally:
            recorder.cleanup_pbar()
            recorder.notebook_complete()
        return recorder.nb


class RunRecorder(NotebookExecutionManager):
    """Papermill's record of a run. Only cells that completed are marked so, and files are written atomically."""

    def __init__(self, notebook: Any, settings: RunSettings, **options: Any) -> None:
        self.settings, self.redaction = settings, Redaction(settings.secrets.values())
        super().__init__(notebook, **options)
        self.nb: Any = notebook
        if settings.source is not None:
            notebook.metadata.papermill["input_path"] = str(settings.source)

    def save(self, **kwargs: Any) -> None:
        self.nb = kwargs.get("nb", self.nb)
        if self.settings.output is not None:
            with replacing(self.settings.output) as temporary:
                temporary.write_text(nbformat.writes(self.redaction.notebook(self.nb)), encoding="utf-8")
        self.last_save_time = self.now()

    def cell_interrupted(self, cell: Any, index: int) -> None:
        """Record a cell in which the kernel died or the run was stopped."""
        self.cell_exception(cell, index)
        cell.metadata.papermill["end_time"] = self.now().isoformat()

    def notebook_complete(self, **kwargs: Any) -> None:
        statuses = [cell.metadata.papermill["status"] for cell in self.nb.cells]
        super().notebook_complete(**kwargs)
        for cell, status in zip(self.nb.cells, statuses, strict=True):
            cell.metadata.papermill["status"] = status
        self.save()

    def complete_pbar(self) -> None:
        """Leave the bar at the last cell that ran; papermill would fill it."""


class Client(PapermillNotebookClient):
    """Runs the cells of one notebook in a prepared kernel."""

    def __init__(self, recorder: RunRecorder, kernel: Kernel, **options: Any) -> None:
        super().__init__(recorder, km=kernel.manager, coalesce_streams=True, **options)
        self.kc = kernel.client
        self._written: dict[int, int] = {}

    def papermill_execute_cells(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            try:
                self.nb_man.cell_start(cell, index)
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(self.nb.cells[index], index, exception=error)
                self.nb_man.cell_complete(self.nb.cells[index], index)
                break
            except BaseException:
                self.nb_man.cell_interrupted(self.nb.cells[index], index)
                raise
            self.nb_man.cell_complete(self.nb.cells[index], index)

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        before = self._written.get(cell_index, 0)
        self._written[cell_index] = before + len(json.dumps(msg["content"], default=str))
        if self._written[cell_index] <= OUTPUT_LIMIT or msg["msg_type"] == "error":
            return super().output(outs, msg, display_id, cell_index)
        if before <= OUTPUT_LIMIT:
            note = f"[qwenlab: output of this cell beyond {OUTPUT_LIMIT // 2**20} MiB was dropped]\n"
            outs.append(nbformat.v4.new_output("stream", name="stderr", text=note))
        return None


_thread = threading.local()


def _run(recorder: RunRecorder, kernel_name: str, settings: RunSettings, timeout: int | None) -> dict[str, Any]:
    """Run the cells, in this thread's warm kernel or in a new one, and return what `Kernel.begin` and `end` report."""
    kernel, begun = _prepared_kernel(settings)
    reusable = False
    try:
        Client(recorder, kernel, kernel_name=kernel_name, timeout=timeout).execute()
        failed = bool(recorder.nb.metadata.papermill["exception"])  # `execute` does not raise for a failed cell
        try:
            ended = kernel.end()
        except (NotebookFailed, DeadKernelError):
            if not failed:  # a notebook that failed may leave a kernel that cannot answer
                raise
            ended = {}
        used = begun | ended | {"runs_in_kernel": kernel.runs, "warm": settings.warm}
        reusable = settings.warm and not failed and _is_reusable(kernel, used)
    finally:
        if reusable:
            _thread.kernel = kernel
        else:
            kernel.close()
    return used


def _prepared_kernel(settings: RunSettings) -> tuple[Kernel, dict[str, Any]]:
    """A kernel that is ready for a notebook, and the report of `Kernel.begin`. The thread no longer owns the kernel."""
    environment = {**settings.environment, **environment_of(settings.secrets)}

    def begin(kernel: Kernel) -> dict[str, Any]:
        try:
            settings.on_kernel_start(kernel)
            return kernel.begin(settings.seed, settings.cwd, environment, settings.warm)
        except BaseException:
            kernel.close()
            raise

    if settings.warm and (warm := _take_kernel()) is not None:
        if warm.is_alive:
            with suppress(NotebookFailed):  # the last notebook broke something that could not be seen when it ended
                return warm, begin(warm)
        warm.close()
    new = Kernel(settings.cwd)
    return new, begin(new)


def _take_kernel() -> Kernel | None:
    """Take this thread's warm kernel from it, if it has one."""
    kernel: Kernel | None = getattr(_thread, "kernel", None)
    _thread.kernel = None
    return kernel


def _is_reusable(kernel: Kernel, used: Mapping[str, Any]) -> bool:
    kernel.first_resident = kernel.first_resident or used["resident"]
    grown = psutil.Process(kernel.pid).memory_info().rss - kernel.first_resident
    return kernel.runs < LIFETIME and grown < GROWTH and not used["left_running"] and not used["changed"]


@atexit.register
def release() -> None:
    """End the warm kernel of this thread, if it has one."""
    if (kernel := _take_kernel()) is not None:
        kernel.close()
