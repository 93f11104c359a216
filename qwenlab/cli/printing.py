"""How commands print tables, lines and estimates."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_lines(*lines: object) -> None:
    """Print each on a line of its own, as it is: not wrapped, coloured or read as markup."""
    for line in lines:
        Console().print(str(line), soft_wrap=True, highlight=False, markup=False)


def print_table(
    columns: Iterable[str], rows: Iterable[Iterable[str | Text]], title: str = "", *, right: Container[int] = ()
) -> None:
    """Print a table under its title. Text is not read as markup; the columns with the numbers `right` end alike."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    Console().print(table)


def estimate(value: float, low: float = math.nan, high: float = math.nan, *, form: str = ".2f") -> str:
    """A number, with its interval if it has one; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")
