"""Run a notebook with papermill: parameters are checked first, and the file name says how the run ended."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jupytext
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import papermill_engines

from qwenlab.errors import CellFailed, NotebookFailed, NotebookKernelDied, UnknownNotebook
from qwenlab.execution.engine import Engine, RunSettings
from qwenlab.execution.parameters import Parameters, parameters_of
from qwenlab.execution.redaction import Redaction
from qwenlab.execution.secrets import looks_secret, secrets_of, shown

ENGINE = "qwenlab"


def run_notebook(path: str | Path, out: str | Path, /, **parameters: Any) -> Path:
    """Execute a notebook with `parameters`, show its progress, and return the path of the executed copy.

    path        a text notebook (.py, jupytext) or an .ipynb; its cells run in its own folder, as in JupyterLab
    out         the folder for the executed copy: `<stem>.ipynb` if it ran to the end, `<stem>.failed.ipynb` if it
                did not, `<stem>.running.ipynb` meanwhile
    parameters  values for the names that the cell tagged "parameters" assigns, with the types that they have there.
                They are written into the copy. `{"env": NAME}` is a secret: it is read from that environment variable,
                and neither the copy nor an error shows it

    Raises UnknownNotebook; UnknownParameter, BadParameter and MissingParameter before the first cell runs;
    NotebookFailed. Warns of a plain value if the parameter's name is that of a password or an access key.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    notebook, declared = read_notebook(path)
    arguments = {name: declared.resolve(name, value) for name, value in parameters.items()}
    declared.filled(arguments)
    for name, value in arguments.items():
        if looks_secret(name, value):
            warnings.warn(
                f"{name!r} is written into the executed notebook. If it is a secret, put it into an environment "
                f'variable and pass {{"env": NAME}}.',
                stacklevel=2,
            )

    out.mkdir(parents=True, exist_ok=True)
    running, finished, failed = (out / f"{path.stem}{state}.ipynb" for state in (".running", "", ".failed"))
    for earlier in (finished, failed):
        earlier.unlink(missing_ok=True)
    try:
        execute(notebook, arguments, RunSettings(path.parent, path, running))
    except NotebookFailed as failure:
        raise NotebookFailed(f"{failure}\nThe executed cells are in {running.replace(failed)}.") from failure
    except BaseException:
        running.replace(failed)
        raise
    return running.replace(finished)


def read_notebook(path: Path) -> tuple[Any, Parameters]:
    """Read a notebook and its parameters. Its kernel is set to Python 3, whatever it was last saved with."""
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*") if other.suffix in (".py", ".ipynb"))
        raise UnknownNotebook(f"no notebook at {path}. That folder has: {', '.join(near) or 'no notebooks'}.")
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return notebook, parameters_of(notebook, path)


def execute(notebook: Any, parameters: Mapping[str, Any], settings: RunSettings, *, bar: str | None = None) -> Any:
    """Execute a notebook, update the file `settings.output` after every cell, and return the executed notebook.

    parameters  may have Secrets, which the file and the errors do not show; the returned notebook may show them
    bar         label of the progress bar, by default the notebook's name; "" for none

    Raises CellFailed if a cell raised, and NotebookKernelDied if the kernel ended before the notebook did.
    """
    papermill_engines.register(ENGINE, Engine)  # also where the package is not installed, and so has no entry point
    name = bar if bar is not None else Path(settings.source or "notebook").stem
    settings = replace(settings, secrets=secrets_of(parameters))
    try:
        with _papermill_log_silenced():
            return papermill.execute_notebook(
                notebook,
                None,
                shown(parameters),
                engine_name=ENGINE,
                progress_bar={"desc": name, "leave": bar is None} if name else False,
                settings=settings,
            )
    except papermill.PapermillExecutionError as cell:
        _redact(cell, Redaction.of(parameters))
        raise CellFailed(f"{settings.source}: cell [{cell.exec_count}] raised {cell.ename}: {cell.evalue}") from cell
    except DeadKernelError as death:
        raise NotebookKernelDied(
            f"{settings.source}: the kernel stopped before the notebook ended: {death}\nThe usual cause is memory."
        ) from death


def failed_cell(failure: CellFailed) -> dict[str, Any]:
    """Describe the failed cell: a one-line `message`, its number `cell`, its `source`, the `traceback`."""
    cause = failure.__cause__
    assert isinstance(cause, papermill.PapermillExecutionError)
    return {
        "message": f"cell [{cause.exec_count}] raised {cause.ename}: {cause.evalue}",
        "cell": cause.exec_count,
        "source": cause.source,
        "traceback": str(cause),
    }


def _redact(cell: papermill.PapermillExecutionError, redaction: Redaction) -> None:
    """Redact the exception itself: a traceback shows it as the cause of ours."""
    cell.source, cell.ename, cell.evalue = map(redaction.text, (cell.source, cell.ename, cell.evalue))
    cell.traceback = redaction.json(cell.traceback)
    cell.args = (cell.cell_index, cell.exec_count, cell.source, cell.ename, cell.evalue, cell.traceback)


@contextmanager
def _papermill_log_silenced() -> Iterator[None]:
    """Silence papermill's warnings about parameters that its own reader cannot parse; ours has checked them."""
    log = logging.getLogger("papermill")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
