"""The papermill engine `qwenlab`: says truly how each cell ended, writes whole files only, and can keep its kernel."""

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
"""Characters of output that are kept of one cell."""

LIFETIME = 64
"""Notebooks after which a warm kernel is replaced."""

GROWTH = 2 * 2**30
"""Bytes by which a warm kernel may have grown since its first notebook before it is replaced."""


@dataclass(frozen=True)
class Setting:
    """How one notebook is run.

    cwd          where its cells run
    source       the file it was read from
    output       the file that is kept up to date with it
    seed         of every generator of random numbers
    environment  variables that are set for it
    warm         keep the kernel, with the checkpoints open in it, for the next notebook of this thread
    secrets      the parameters that the kernel gets in its environment, and that are written nowhere
    started      told the kernel once it is ready, so that another thread can end it
    """

    cwd: Path
    source: Path | None = None
    output: Path | None = None
    seed: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    started: Callable[[Kernel], None] = lambda kernel: None


class Engine(PapermillEngine):
    """What `papermill --engine qwenlab` and `run_notebook` run notebooks with.

    Called through papermill alone it keeps its kernel: notebooks that one Python process executes one after another
    share it, each in a namespace of its own.
    """

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: Any = True,
        log_output: bool = False,
        setting: Setting | None = None,
        **others: Any,
    ) -> Any:
        """Run every cell; papermill raises afterwards for a cell that failed. Raises DeadKernelError itself."""
        if setting is None:  # called by papermill itself, which writes to addresses such as s3://... on its own
            local = output_path is not None and "://" not in str(output_path)
            setting = Setting(Path.cwd(), output=Path(str(output_path)) if local else None, warm=True)
        if setting.secrets:
            inject(nb, setting.secrets)
        witness = RunRecorder(nb, setting, log_output=log_output, progress_bar=progress_bar)
        witness.notebook_start()
        try:
            used = _run(witness, kernel_name, setting, others.get("execution_timeout"))
            nb.metadata.papermill["qwenlab"] = used
        finally:
            witness.cleanup_pbar()
            witness.notebook_complete()
        return witness.nb


class RunRecorder(NotebookExecutionManager):
    """Papermill's record of a run, which calls no cell completed that was not, and never leaves half a file."""

    def __init__(self, notebook: Any, setting: Setting, **options: Any) -> None:
        self.setting, self.redaction = setting, Redaction(setting.secrets.values())
        super().__init__(notebook, **options)
        self.nb: Any = notebook
        if setting.source is not None:
            notebook.metadata.papermill["input_path"] = str(setting.source)

    def save(self, **kwargs: Any) -> None:
        self.nb = kwargs.get("nb", self.nb)
        if self.setting.output is not None:
            write(self.nb, self.setting.output, self.redaction)
        self.last_save_time = self.now()

    def cell_broke_off(self, cell: Any, index: int) -> None:
        """The kernel died in this cell, or someone stopped it."""
        self.cell_exception(cell, index)
        cell.metadata.papermill["end_time"] = self.now().isoformat()

    def notebook_complete(self, **kwargs: Any) -> None:
        statuses = [cell.metadata.papermill["status"] for cell in self.nb.cells]
        super().notebook_complete(**kwargs)
        for cell, status in zip(self.nb.cells, statuses, strict=True):
            cell.metadata.papermill["status"] = status
        self.save()

    def complete_pbar(self) -> None:
        """A bar that stops short says so."""


class Client(PapermillNotebookClient):
    """Runs the cells of one notebook in a kernel that is ready."""

    def __init__(self, witness: RunRecorder, kernel: Kernel, **options: Any) -> None:
        super().__init__(witness, km=kernel.manager, coalesce_streams=True, **options)
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
                self.nb_man.cell_broke_off(self.nb.cells[index], index)
                raise
            self.nb_man.cell_complete(self.nb.cells[index], index)

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        before = self._written.get(cell_index, 0)
        self._written[cell_index] = before + len(json.dumps(msg["content"], default=str))
        if self._written[cell_index] <= OUTPUT_LIMIT or msg["msg_type"] == "error":
            return super().output(outs, msg, display_id, cell_index)
        if before <= OUTPUT_LIMIT:
            words = f"[qwenlab: what this cell put out beyond {OUTPUT_LIMIT // 2**20} MiB was not kept]\n"
            outs.append(nbformat.v4.new_output("stream", name="stderr", text=words))
        return None


_mine = threading.local()


def _run(witness: RunRecorder, kernel_name: str, setting: Setting, timeout: int | None) -> dict[str, Any]:
    """Run the cells, in this thread's warm kernel or in a new one, and return what they used."""
    kernel, begun = _ready(setting)
    fit = False
    try:
        Client(witness, kernel, kernel_name=kernel_name, timeout=timeout).execute()
        failed = bool(witness.nb.metadata.papermill["exception"])  # a cell that raises ends `execute` without an error
        used = begun | _ended(kernel, failed) | {"runs_in_kernel": kernel.runs, "warm": setting.warm}
        fit = setting.warm and not failed and _is_fit(kernel, used)
    finally:
        if fit:
            _mine.kernel = kernel
        else:
            kernel.close()
    return used


def _ready(setting: Setting) -> tuple[Kernel, dict[str, Any]]:
    """A kernel that is set up for a notebook, and what `Kernel.begin` returned. This thread no longer has it."""
    wanted = {
        "seed": setting.seed,
        "cwd": str(setting.cwd),
        "environment": {**setting.environment, **environment_of(setting.secrets)},
        "warm": setting.warm,
    }
    if setting.warm and (warm := _taken()) is not None:
        with suppress(NotebookFailed):  # something in it is broken that could not be seen when its last notebook ended
            return warm, _begun(warm, setting, wanted)
    new = Kernel(setting.cwd)
    return new, _begun(new, setting, wanted)


def _taken() -> Kernel | None:
    """This thread's warm kernel, if it has one that still runs; from then on the thread has none."""
    kernel: Kernel | None = getattr(_mine, "kernel", None)
    _mine.kernel = None
    if kernel is not None and not kernel.is_alive:
        kernel.close()
        return None
    return kernel


def _begun(kernel: Kernel, setting: Setting, wanted: dict[str, Any]) -> dict[str, Any]:
    """Set a kernel up for a notebook. One that cannot be set up is ended."""
    try:
        setting.started(kernel)
        return kernel.begin(wanted)
    except BaseException:
        kernel.close()
        raise


def _ended(kernel: Kernel, failed: bool) -> dict[str, Any]:
    """What the notebook used; nothing where it failed and left a kernel that cannot answer."""
    try:
        return kernel.end()
    except (NotebookFailed, DeadKernelError):
        if not failed:
            raise
        return {}


def _is_fit(kernel: Kernel, used: Mapping[str, Any]) -> bool:
    """Whether a kernel is as good as new for another notebook."""
    kernel.first_resident = kernel.first_resident or used["resident"]
    grown = psutil.Process(kernel.pid).memory_info().rss - kernel.first_resident
    return kernel.runs < LIFETIME and grown < GROWTH and not used["left_running"] and not used["changed"]


@atexit.register
def release() -> None:
    """End the warm kernel of this thread, if it has one."""
    kernel = getattr(_mine, "kernel", None)
    _mine.kernel = None
    if kernel is not None:
        kernel.close()


def write(notebook: Any, path: Path, redaction: Redaction) -> None:
    """Write a notebook in one step, without the secrets."""
    with replacing(path) as beside:
        beside.write_text(nbformat.writes(redaction.notebook(notebook)), encoding="utf-8")
