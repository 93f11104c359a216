"""The code that a run is made of: the notebook's cells, and the files beside it that they import."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def code_hash(notebook: Any, folder: Path) -> str:
    """A hash of the code cells, and of every .py file of the folder that they import, directly or through another.

    Prose is not in it: it may be mended without running everything again. Files that are read, rather than imported,
    are not in it either: give their content, or a hash of it, as a parameter.
    """
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    files: dict[Path, str] = {}
    for source in cells:
        _follow(source, folder, files)
    beside = {file.name: text for file, text in sorted(files.items())}
    return hashlib.sha256(json.dumps([cells, beside]).encode()).hexdigest()[:16]


def _follow(source: str, folder: Path, files: dict[Path, str]) -> None:
    for name in _imported(source):
        file = folder / f"{name}.py"
        if file.is_file() and file not in files:
            files[file] = file.read_text(encoding="utf-8")
            _follow(files[file], folder, files)


def _imported(source: str) -> Iterator[str]:
    """First names of the modules that some code imports, wherever it does."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def calls_of_record(cell: Any) -> Iterator[ast.Call]:
    """Calls of `experiments.record(...)`, or of a bare `record(...)`, in a cell."""
    if cell.cell_type == "code":
        for node in ast.walk(parsed(cell.source)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "record" or name.endswith("experiments.record"):
                    yield node


def parsed(source: str) -> ast.Module:
    """The syntax of a cell without its magics; of one that is no Python, nothing."""
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module([], [])
