"""Hash and parse the code of a run: the notebook's cells, and the files in its folder that they import."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def code_hash(notebook: Any, folder: Path) -> str:
    """Hash the code cells, and every .py file of the folder that they import, directly or through another.

    The hash leaves out prose, so that a corrected text does not run everything again. It also leaves out files that
    are read rather than imported: pass their content, or a hash of it, as a parameter.
    """
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    files: dict[Path, str] = {}
    for source in cells:
        _add_imports(source, folder, files)
    imported = {file.name: text for file, text in sorted(files.items())}
    return hashlib.sha256(json.dumps([cells, imported]).encode()).hexdigest()[:16]


def _add_imports(source: str, folder: Path, files: dict[Path, str]) -> None:
    for name in _modules_in(source):
        file = folder / f"{name}.py"
        if file.is_file() and file not in files:
            files[file] = file.read_text(encoding="utf-8")
            _add_imports(files[file], folder, files)


def _modules_in(source: str) -> Iterator[str]:
    """Top-level names of the modules that some code imports, also inside functions."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def calls_of_record(cell: Any) -> Iterator[ast.Call]:
    """The calls of `experiments.record(...)`, or of a bare `record(...)`, in a cell."""
    if cell.cell_type == "code":
        for node in ast.walk(parsed(cell.source)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "record" or name.endswith("experiments.record"):
                    yield node


def parsed(source: str) -> ast.Module:
    """The syntax tree of a cell without its magics; empty if it is not Python."""
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module([], [])
