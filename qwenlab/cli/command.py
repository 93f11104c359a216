"""Make the command of a recipe from its signature (docs/decisions/0033)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import not_
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer

from qwenlab.errors import BadArgument
from qwenlab.recipes.inputs import CheckpointInput, FilePath, FolderPath, GeometryInput


class _Option(NamedTuple):
    parameter: inspect.Parameter
    read: Callable[[Any], Any]


def add_recipe(app: typer.Typer, recipe: Callable[..., Any], report: Callable[..., None]) -> None:
    """Add the command of a recipe to `app`. Its options are the parameters of the recipe and those of `report`.

    Types and defaults come from the signatures, help texts from the docstrings or, for types that recipes share, from
    recipes/inputs.py. `report` prints the recipe's result, its first argument.
    """
    inputs, (_, *shown) = inspect.signature(recipe).parameters, inspect.signature(report).parameters
    options = {name: _option(recipe if name in inputs else report, name) for name in dict.fromkeys([*inputs, *shown])}

    def run(**values: Any) -> None:
        read = {name: option.read(values[name]) for name, option in options.items()}
        report(recipe(**{name: read[name] for name in inputs}), **{name: read[name] for name in shown})

    run.__signature__ = inspect.Signature([option.parameter for option in options.values()])  # type: ignore[attr-defined]
    summary = (inspect.getdoc(recipe) or "").partition("\n\n")[0]
    app.command(recipe.__name__.replace("_", "-"), help=summary.replace("`", ""))(run)


def _option(function: Callable[..., Any], name: str) -> _Option:
    """The option of one parameter, and the function that turns the option's value into the parameter's."""
    parameter = inspect.signature(function).parameters[name]
    hint = eval(parameter.annotation, function.__globals__)  # this one only: others may name types of torch
    optional = NoneType in get_args(hint)
    plain = next(each for each in get_args(hint) if each is not NoneType) if optional else hint
    kind, *notes = get_args(plain) if get_origin(plain) is Annotated else (plain,)
    help = _documented(function).get(name) or next(note for note in notes if isinstance(note, str))
    default = parameter.default
    read: Callable[[Any], Any] = _same
    names = [f"--{name[:-1]}"] if name in ("texts", "tasks") else []  # repeated: --task code --task prose
    how: dict[str, Any] = {}
    if plain in (FolderPath, FilePath):
        what = "file" if plain == FilePath else "folder"
        kind, how = Path, dict(metavar=f"<{what}>", file_okay=what == "file", dir_okay=what == "folder")
    elif get_origin(kind) is Mapping:
        help += ". One file per --text, whose name is the label"
        kind, read, how = list[Path], _texts, dict(metavar="<file>", exists=True, dir_okay=False)
        default = None if optional else default
    elif get_origin(kind) in (Iterable, Sequence):
        (item,) = get_args(kind)
        kind, read, how = list[str], partial(_items, f"--{name}", item), dict(metavar=f"<{item.__name__},...>")
    elif get_origin(kind) is Literal:
        help, how = f"{help}: {', '.join(get_args(kind))}", dict(metavar="<word>")
    elif kind is bool and default:
        help, names, default, read = f"do not {help}", [f"--no-{name}"], False, not_
    elif notes and isinstance(notes[0], range):
        how = dict(min=notes[0].start, metavar="<int>")
    how["help"] = f"{help[0].upper()}{help[1:]}.".replace("`", "")
    is_source = plain in (CheckpointInput, GeometryInput)
    info = typer.Argument(**how) if is_source else typer.Option(*names, **how)
    shell = str if is_source else kind | None if optional else kind
    return _Option(
        parameter.replace(annotation=Annotated[shell, info], default=default, kind=parameter.KEYWORD_ONLY), read
    )


def _documented(function: Callable[..., Any]) -> dict[str, str]:
    """The parameter section of a docstring: lines of a name, two spaces or more, and a text that may go on indented."""
    found = re.findall(r"^(\w+) {2,}(.+(?:\n {2,}.+)*)", inspect.getdoc(function) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _same(value: Any) -> Any:
    return value


def _items(option: str, kind: Callable[[str], Any], values: Iterable[str] | None) -> list[Any] | None:
    """The items of an option that takes several, separated by commas or in options of their own."""
    if not values:
        return None
    written = ",".join(values)
    try:
        return [kind(item.strip()) for item in written.split(",")]
    except ValueError as error:
        raise BadArgument(f"{option} {written!r}: give numbers with commas between them, such as 0,3,7.") from error


def _texts(files: list[Path] | None) -> dict[str, str] | None:
    """The text of each file under its name without the ending, or under its path where two names would be the same."""
    if not files:
        return None
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): _text(file) for file in files}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadArgument(f"--text: {file} is not UTF-8 text: {error}.\nConvert it, or leave it out.") from error
