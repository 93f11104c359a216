"""Write small notebooks, and run them for real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import pytest

from qwenlab.execution.engine import RunSettings, release
from qwenlab.execution.notebook_runner import execute, read_notebook

Run = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def _no_kernel_is_left():
    yield
    release()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run cells of code, by default in the warm kernel of this process, and return the executed notebook."""

    def run(*cells: str, parameters: str = "", name: str = "question", values: Any = None, **settings: Any) -> Any:
        source = tmp_path / f"{name}.py"
        source.write_text("\n\n".join(['# %% tags=["parameters"]', parameters, *(f"# %%\n{cell}" for cell in cells)]))
        values = values or {}
        defaults = dict(cwd=tmp_path, source=source, output=tmp_path / f"{name}.ipynb", warm=True)
        return execute(read_notebook(source)[0], values, RunSettings(**defaults | settings), bar="")

    return run


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout").strip()


def statuses(path: Path) -> list[str]:
    return [cell.metadata.papermill["status"] for cell in jupytext.read(path).cells if cell.source.strip()]
