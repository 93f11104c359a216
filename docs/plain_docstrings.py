"""A Sphinx extension that reads qwenlab's docstrings, which are plain text, as reStructuredText.

    name    a row of aligned columns           -> an entry of a definition list
            may go on in the next line
        an indented block                      -> a literal block
    `name` in backticks                        -> code, and a link where it is a public name

Everything else is text: asterisks, bars and underscores mean themselves.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROW = re.compile(r"(?P<term>\S+(?: \S+)*) {2,}(?P<text>\S.*)")
SPECIAL = re.compile(r"([\\*|_])")
NAME = re.compile(r"[A-Za-z_][\w.]*")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", on_docstring)
    return {"parallel_read_safe": True}


def on_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if what in ("data", "attribute") and not isinstance(thing, property):
        if thing is not None and lines and inspect.getdoc(type(thing)) == "\n".join(lines).strip():
            lines.clear()  # of `dict`, not of the constant
        return
    lines[:] = restructured("\n".join(lines))


def restructured(text: str) -> list[str]:
    """A plain docstring as lines of reStructuredText."""
    lines: list[str] = []
    for block in re.split(r"\n{2,}", text.expandtabs().strip("\n")):
        rows = block.split("\n")
        if all(row.startswith("    ") for row in rows):
            lines += _literal(rows)
        elif len(lines_of_table := list(_table(rows))) > 1:
            lines += [*lines_of_table, ""]
        else:
            lines += _paragraph(rows)
    return lines


def _literal(rows: list[str]) -> list[str]:
    return ["", "::", "", *rows, ""]


def _paragraph(rows: list[str]) -> Iterator[str]:
    """Prose, with a table or an indented block directly below it set apart."""
    for start, row in enumerate(rows):
        if start and (ROW.fullmatch(row) and list(_table(rows[start:]))):
            yield from ("", *_table(rows[start:]), "")
            return
        if start and row.startswith("    "):
            end = next((at for at in range(start, len(rows)) if not rows[at].startswith("    ")), len(rows))
            yield from _literal(rows[start:end])
            yield from _paragraph(rows[end:])
            return
        yield inline(row.strip())
    yield ""


def _table(rows: list[str]) -> Iterator[str]:
    """The definition list of a block in aligned columns; nothing where it is not one."""
    entries: list[tuple[str, list[str]]] = []
    for row in rows:
        match = ROW.fullmatch(row)
        if match and not row.startswith(" "):
            entries.append((match["term"], [match["text"]]))
        elif entries and row.startswith("  "):
            entries[-1][1].append(row.strip())
        else:
            return
    for term, text in entries:
        yield inline(term, code=True)
        yield from ("    " + inline(" ".join(text)),)
    yield ""


def inline(text: str, *, code: bool = False) -> str:
    """Text with what is special in reStructuredText escaped, and code between backticks; `code`: all of it is code."""
    if code and "`" not in text:
        return f"``{text}``"
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a span that goes on in the next line
        return SPECIAL.sub(r"\\\1", text).replace("`", "\\`")
    return "".join(_code(part) if at % 2 else SPECIAL.sub(r"\\\1", part) for at, part in enumerate(parts))


def _code(text: str) -> str:
    if not NAME.fullmatch(text):
        return f"``{text}``\\ "
    public = re.sub(r"^ql\.", "qwenlab.", text)
    return f":py:obj:`{text} <{public}>`\\ "
