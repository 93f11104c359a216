"""Run a notebook through papermill: parameters checked first, on the Python running now, honest about how it ended."""

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
from qwenlab.execution.engine import Engine, Setting
from qwenlab.execution.parameters import Parameters, parameters_of
from qwenlab.execution.redaction import Redaction
from qwenlab.execution.secrets import looks_secret, secrets_of, shown

ENGINE = "qwenlab"


def run_notebook(path: str | Path, out: str | Path, /, **parameters: Any) -> Path:
    """Execute a notebook with `parameters`, show its progress, and return the path of the executed copy.

    path        a text notebook (.py, jupytext) or an .ipynb; its cells run in its own folder, as in JupyterLab
    out         the folder for the executed copy: `<stem>.ipynb` if it ran to the end, `<stem>.failed.ipynb` if it
                did not, `<stem>.running.ipynb` meanwhile
    parameters  values for the names that the cell tagged "parameters" assigns, each of the type it has there. They are
                written into the copy. `{"env": NAME}` is a secret: it is read from that environment variable, and
                neither the copy nor an error shows it

    Raises UnknownNotebook; UnknownParameter, BadParameter and MissingParameter before the first cell runs;
    NotebookFailed. Warns of a value that is given as it is although its name is that of a password or an access key.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    notebook, declared = read_notebook(path)
    given = {name: declared.resolve(name, value) for name, value in parameters.items()}
    declared.filled(given)
    for name in given:
        if looks_secret(name, given[name]):
            warnings.warn(
                f"{name!r} is written into the executed notebook. If it is a secret, put it into an environment "
                f'variable and give {{"env": NAME}}.',
                stacklevel=2,
            )

    out.mkdir(parents=True, exist_ok=True)
    running, finished, failed = (out / f"{path.stem}{state}.ipynb" for state in (".running", "", ".failed"))
    for earlier in (finished, failed):
        earlier.unlink(missing_ok=True)
    try:
        execute(notebook, given, Setting(path.parent, path, running))
    except NotebookFailed as failure:
        raise NotebookFailed(f"{failure}\nThe cells up to there are in {running.replace(failed)}.") from failure
    except BaseException:
        running.replace(failed)
        raise
    return running.replace(finished)


def read_notebook(path: Path) -> tuple[Any, Parameters]:
    """A notebook, marked as Python 3 whatever kernel it was last saved with, and its parameters."""
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*") if other.suffix in (".py", ".ipynb"))
        raise UnknownNotebook(f"no notebook at {path}. That folder has: {', '.join(near) or 'no notebooks'}.")
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return notebook, parameters_of(notebook, path)


def execute(notebook: Any, parameters: Mapping[str, Any], setting: Setting, *, bar: str | None = None) -> Any:
    """Execute a notebook, keep the file `setting.output` up to date, and return the executed notebook.

    parameters  of these the file and the errors do not show a Secret; the notebook that is returned may
    bar         what the progress bar is called, by default the notebook's name; "" for none

    Raises CellFailed where a cell raised, and KernelDied where the kernel ended before the notebook did.
    """
    papermill_engines.register(ENGINE, Engine)  # also where the package is not installed, and so has no entry point
    name = bar if bar is not None else Path(setting.source or "notebook").stem
    setting = replace(setting, secrets=secrets_of(parameters))
    try:
        with _papermill_quiet():
            return papermill.execute_notebook(
                notebook,
                None,
                shown(parameters),
                engine_name=ENGINE,
                progress_bar={"desc": name, "leave": bar is None} if name else False,
                setting=setting,
            )
    except papermill.PapermillExecutionError as cell:
        _redact(cell, Redaction.of(parameters))
        raise CellFailed(f"{setting.source}: cell [{cell.exec_count}] raised {cell.ename}: {cell.evalue}") from cell
    except DeadKernelError as death:
        raise NotebookKernelDied(
            f"{setting.source}: the kernel stopped before the notebook ended: {death}\nThe usual cause is memory."
        ) from death


def failed_cell(failure: CellFailed) -> dict[str, Any]:
    """Which cell failed and how: its number, its source, `message` in a line, `traceback`."""
    cause = failure.__cause__
    assert isinstance(cause, papermill.PapermillExecutionError)
    return {
        "message": f"cell [{cause.exec_count}] raised {cause.ename}: {cause.evalue}",
        "cell": cause.exec_count,
        "source": cause.source,
        "traceback": str(cause),
    }


def _redact(cell: papermill.PapermillExecutionError, redaction: Redaction) -> None:
    """Take the secrets out of an exception itself: a traceback shows it as the cause of ours."""
    cell.source, cell.ename, cell.evalue = map(redaction.text, (cell.source, cell.ename, cell.evalue))
    cell.traceback = redaction.json(cell.traceback)
    cell.args = (cell.cell_index, cell.exec_count, cell.source, cell.ename, cell.evalue, cell.traceback)


@contextmanager
def _papermill_quiet() -> Iterator[None]:
    """Silences its doubts about parameters that were checked and its own reader cannot parse."""
    log = logging.getLogger("papermill")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
