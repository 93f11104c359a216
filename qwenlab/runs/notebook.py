"""Run a notebook through papermill: parameters checked first, on the Python running now, honest about how it ended."""

import ast
import builtins
import logging
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jupytext
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from pydantic import JsonValue, TypeAdapter, ValidationError

from qwenlab.errors import BadParameter, NotebookFailed, UnknownNotebook, UnknownParameter


def run_notebook(path: str | Path, out: str | Path, /, **parameters: Any) -> Path:
    """Execute a notebook with `parameters`, show its progress, and return the path of the executed copy.

    path        a text notebook (.py, jupytext) or an .ipynb; its cells run in its own folder, as in JupyterLab
    out         the folder for the executed copy: `<stem>.ipynb` if it ran to the end, `<stem>.failed.ipynb` if it
                did not, `<stem>.running.ipynb` meanwhile
    parameters  values for the names that the cell tagged "parameters" assigns, each of the type it has there

    Raises UnknownNotebook; UnknownParameter and BadParameter before the first cell runs; NotebookFailed.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    notebook = _read(path)
    _check(parameters, _declared(notebook, path), path)

    out.mkdir(parents=True, exist_ok=True)
    running, finished, failed = (out / f"{path.stem}{state}.ipynb" for state in (".running", "", ".failed"))
    for earlier in (finished, failed):
        earlier.unlink(missing_ok=True)
    jupytext.write(notebook, running)
    try:
        with _papermill_quiet():
            executed = papermill.execute_notebook(
                running, running, parameters, cwd=path.parent, km=_own_kernel(), progress_bar={"desc": path.stem}
            )
        executed.metadata.papermill.input_path = str(path)
        jupytext.write(executed, running)
    except papermill.PapermillExecutionError as cell:
        raise NotebookFailed(
            f"{path}: cell [{cell.exec_count}] raised {cell.ename}: {cell.evalue}\n"
            f"The cells up to there, with the traceback, are in {running.replace(failed)}."
        ) from cell
    except RuntimeError as death:  # what nbclient says of a kernel that died or never answered
        raise NotebookFailed(
            f"{path}: the kernel stopped before the notebook ended: {death}\n"
            f"The usual cause is memory. The cells up to there are in {running.replace(failed)}."
        ) from death
    return running.replace(finished)


def _read(path: Path) -> Any:
    """The notebook at `path`, marked as Python 3 whatever kernel it was last saved with."""
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*") if other.suffix in (".py", ".ipynb"))
        raise UnknownNotebook(f"no notebook at {path}. That folder has: {', '.join(near) or 'no notebooks'}.")
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return notebook


def _declared(notebook: Any, path: Path) -> dict[str, Any]:
    """Name -> type of each parameter. Read with `ast`: papermill's own reader misses `x: int | None = 1`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    declared: dict[str, Any] = {}
    for statement in ast.parse(cells[0].source, filename=str(path)).body if cells else []:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                declared[name] = _type_named(ast.unparse(annotation), name, path)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)) if value is not None:
                declared[name] = type(value)
            case ast.Assign(targets=[ast.Name(id=name)]):
                declared[name] = Any
    return declared


def _type_named(annotation: str, name: str, path: Path) -> Any:
    try:
        return eval(annotation, vars(typing) | vars(builtins))
    except (NameError, TypeError) as unknown:
        raise BadParameter(
            f"{path}: parameter {name!r} is annotated `{annotation}`, which is no type: {unknown}.\n"
            "Annotate with built-in types and names from `typing`, such as str, int | None, Literal['a', 'b']."
        ) from unknown


def _check(parameters: dict[str, Any], declared: dict[str, Any], path: Path) -> None:
    for name, value in parameters.items():
        if name not in declared:
            nearest = get_close_matches(name, declared, n=1, cutoff=0.0)
            mend = f"did you mean {nearest[0]!r}? It has" if nearest else "tag a cell 'parameters' there; now it has"
            raise UnknownParameter(f"{path} has no parameter {name!r}: {mend}: {', '.join(declared) or 'none'}.")
        wanted: Any
        for wanted in (JsonValue, declared[name]):  # papermill writes anything but JSON's types as a string
            try:
                TypeAdapter(wanted).validate_python(value, strict=True)
            except ValidationError as misfit:
                raise BadParameter(
                    f"{path}: parameter {name!r} cannot be {value!r}: {misfit.errors()[0]['msg']}, "
                    f"and this is of type {type(value).__name__}."
                ) from misfit


class _ThisPython(KernelSpecManager):
    """Knows one kernel, the interpreter running now, whatever "python3" stands for in the user's own kernels."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def _own_kernel() -> AsyncKernelManager:
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisPython(), transport_encryption="auto")


@contextmanager
def _papermill_quiet() -> Iterator[None]:
    """Silences its doubts about parameters that `_check` has passed and its own reader cannot parse."""
    log = logging.getLogger("papermill")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
