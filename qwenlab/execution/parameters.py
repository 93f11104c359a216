"""Read the parameters cell of a notebook: names, types and defaults; check values against it."""

from __future__ import annotations

import ast
import builtins
import os
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from qwenlab.errors import BadParameter, MissingParameter, UnknownParameter
from qwenlab.execution.secrets import HIDDEN, Secret, is_reference

REQUIRED = object()
"""The default of a parameter without a value: `name: int`."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its type, its default (REQUIRED if it has none, None if it is not a literal), its line."""

    type: Any
    default: Any
    line: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one notebook, by name; `tagged` is False if it has no parameters cell."""

    path: Path
    by_name: dict[str, Parameter]
    tagged: bool = True

    def require(self, name: str) -> None:
        """Raise UnknownParameter if the parameters cell does not assign this name."""
        if name not in self.by_name:
            hint = "tag a cell 'parameters' that assigns it"
            if nearest := get_close_matches(name, self.by_name, n=1, cutoff=0.0):
                hint = f"did you mean {nearest[0]!r}? It has: {', '.join(self.by_name)}"
            raise UnknownParameter(f"{self.path} has no parameter {name!r}: {hint}.")

    def check(self, name: str, value: Any) -> None:
        """Raise UnknownParameter, or BadParameter for another type. No message shows the value of a Secret."""
        self.require(name)
        plain, text = (value.value, HIDDEN) if isinstance(value, Secret) else (value, repr(value))
        if problem := self._problem(name, plain):
            raise BadParameter(
                f"{self.path}: parameter {name!r} cannot be {text}: {problem}, and this is of type "
                f"{type(plain).__name__}."
            )

    def resolve(self, name: str, value: Any) -> Any:
        """Check a value and return it; `{env: NAME}` is read from the environment and returned as a Secret.

        The text of an environment variable is used unchanged if the parameter's type accepts text, else parsed as JSON
        (`3`, `true`, `["a"]`), else converted to the type by pydantic. Raises what `check` raises.
        """
        if is_reference(value):
            value = self._from_environment(name, value["env"])
        self.check(name, value)
        return value

    def _from_environment(self, name: str, variable: Any) -> Secret:
        if not isinstance(variable, str) or not variable:
            raise BadParameter(f"{name!r}: `env` must name an environment variable: {{env: NAME}}.")
        self.require(name)
        if variable not in os.environ:
            raise BadParameter(f"{name!r} is read from {variable}, which is not set: export it first.")
        text, adapter = os.environ[variable], TypeAdapter(self.by_name[name].type)
        read: Callable[[], Any]
        for read in (
            lambda: adapter.validate_python(text, strict=True),
            lambda: adapter.validate_json(text, strict=True),
            lambda: adapter.validate_python(text),
        ):
            with suppress(ValidationError):
                return Secret(read(), variable, text)
        return Secret(text, variable, text)

    def _problem(self, name: str, value: Any) -> str | None:
        """Why a value is not valid. It must be JSON too: papermill writes any other type as a string."""
        required: Any
        for required in (JsonValue, self.by_name[name].type):
            try:
                TypeAdapter(required).validate_python(value, strict=True)
            except ValidationError as error:
                return str(error.errors()[0]["msg"])
        return None

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters: `values`, and the notebook's defaults for the others. Raises MissingParameter."""
        full = {name: values.get(name, parameter.default) for name, parameter in self.by_name.items()}
        if missing := [f"{name} (line {self.by_name[name].line})" for name, value in full.items() if value is REQUIRED]:
            raise MissingParameter(
                f"{self.path} needs values for: {', '.join(missing)}. Its parameters cell has no defaults for them."
            )
        return full


def parameters_of(notebook: Any, path: Path) -> Parameters:
    """Read the cell tagged "parameters", without running it. Papermill's own reader misses `x: int | None = 1`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        return Parameters(path, {}, tagged=False)
    first = _first_line(path, cells[0].source)
    by_name = {}
    for statement in ast.parse(cells[0].source, filename=str(path)).body:
        line = first + statement.lineno - 1
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                default = REQUIRED if value is None else _literal(value)
                by_name[name] = Parameter(_type_named(ast.unparse(annotation), name, path), default, line)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)) if value is not None:
                by_name[name] = Parameter(type(value), value, line)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                by_name[name] = Parameter(Any, _literal(value), line)
    return Parameters(path, by_name)


def _first_line(path: Path, source: str) -> int:
    """The line of a text notebook at which a cell begins; 1 for a JSON notebook, whose lines nobody edits."""
    text = "" if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    return 1 + text.count("\n", 0, max(0, text.find(source)))


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def _type_named(annotation: str, name: str, path: Path) -> Any:
    try:
        return eval(annotation, vars(typing) | vars(builtins))
    except (NameError, TypeError) as unknown:
        raise BadParameter(
            f"{path}: parameter {name!r} is annotated `{annotation}`, which is not a type: {unknown}.\n"
            "Annotate with built-in types and names from `typing`, such as str, int | None, Literal['a', 'b']."
        ) from unknown
