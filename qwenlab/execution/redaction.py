"""The values of secrets taken out of text, JSON and notebooks."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

import nbformat

from qwenlab.execution.secrets import HIDDEN, Secret

SHORTEST = 8
"""Characters from which on a value is looked for. Shorter ones, such as `True` or `e`, are parts of ordinary text."""

_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_JSON = re.compile(r"application/(.*\+)?json")


class Redaction:
    """Writes HIDDEN in the place of every value of these secrets, and of every item in them.

    A value is found as it is, as Python, JSON, HTML and URLs write it, and between the colours of a terminal. Numbers
    are found by their decimal digits. What a notebook encodes, splits or shortens is not found.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        written = [text for each in secrets for value in (each.value, each.text) for text in _texts(value)]
        texts = {text for text in written if len(text) >= SHORTEST}
        self._forms = sorted({form for text in texts for form in _forms(text)}, key=lambda form: (-len(form), form))

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Redaction:
        """That of the secrets among parameters."""
        return cls(value for value in parameters.values() if isinstance(value, Secret))

    def text(self, text: str) -> str:
        """The text without the secrets."""
        before = None
        while text != before:  # what is left on both sides of a secret can be one again; each round is shorter
            before = text
            for form in self._forms:
                text = text.replace(form, HIDDEN)
            if "\x1b" in text:
                text = self._coloured(text)
        return text

    def json(self, content: Any, *, keys: bool = False) -> Any:
        """JSON without the secrets among its strings and numbers.

        keys  look at the names in its objects too
        """
        match content:
            case str():
                return self.text(content)
            case int() | float():
                return HIDDEN if str(content) in self._forms else content
            case list():
                return [self.json(each, keys=keys) for each in content]
            case dict():
                return {self.text(name) if keys else name: self.json(each, keys=keys) for name, each in content.items()}
        return content

    def notebook(self, notebook: Any) -> Any:
        """A copy of a notebook without the secrets, which is valid where the notebook is.

        Its sources, outputs, attachments and metadata are looked at; what only the format itself gives, such as the
        type and id of a cell, is not.
        """
        if not self._forms:
            return notebook
        cells = [self._cell(cell) for cell in notebook.cells]
        return nbformat.from_dict({**notebook, "metadata": self.json(notebook.metadata), "cells": cells})

    def _cell(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        metadata = self.json(cell["metadata"])
        if "tags" in metadata:  # the format wants each once
            metadata["tags"] = list(dict.fromkeys(metadata["tags"]))
        changed: dict[str, Any] = {"metadata": metadata, "source": self._lines(cell["source"])}
        if "outputs" in cell:
            changed["outputs"] = [self._output(output) for output in cell["outputs"]]
        if "attachments" in cell:
            changed["attachments"] = {name: self._bundle(each) for name, each in cell["attachments"].items()}
        return {**cell, **changed}

    def _output(self, output: Mapping[str, Any]) -> dict[str, Any]:
        match output["output_type"]:
            case "stream":
                return {**output, "text": self._lines(output["text"])}
            case "error":
                return {**output, **{name: self.json(output[name]) for name in ("ename", "evalue", "traceback")}}
        return {**output, "data": self._bundle(output["data"]), "metadata": self.json(output["metadata"])}

    def _bundle(self, bundle: Mapping[str, Any]) -> dict[str, Any]:
        """What one output or attachment shows, by MIME type."""
        return {
            name: self.json(content, keys=True) if _JSON.fullmatch(name) else self._lines(content)
            for name, content in bundle.items()
        }

    def _lines(self, text: str | list[str]) -> str:
        """Text that the format also allows as a list of its lines."""
        return self.text(text if isinstance(text, str) else "".join(text))

    def _coloured(self, text: str) -> str:
        """Text without the longest secret that a terminal's colours interrupt; the same text if there is none."""
        gaps = [match.span() for match in _COLOUR.finditer(text)]
        starts, ends = [0, *(end for _, end in gaps)], [*(start for start, _ in gaps), len(text)]
        places = [place for span in zip(starts, ends, strict=True) for place in range(*span)]
        plain = "".join(text[start:end] for start, end in zip(starts, ends, strict=True))
        form = next((form for form in self._forms if form in plain), None)
        if form is None:
            return text
        parts, done = [], 0
        for match in re.finditer(re.escape(form), plain):
            parts += [text[done : places[match.start()]], HIDDEN]
            done = places[match.end() - 1] + 1
        return "".join([*parts, text[done:]])


def _texts(value: Any) -> Iterator[str]:
    """How a value and the items in it are written plainly. The names in a dict are no secrets."""
    match value:
        case str():
            yield from (value, value.strip())
        case bool() | None:
            yield str(value)
        case int():
            yield from (str(value), f"{value:,}")
        case float():
            yield str(value)
        case list() | dict():
            yield from (repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False))
            for each in value.values() if isinstance(value, dict) else value:
                yield from _texts(each)


def _forms(text: str) -> set[str]:
    """A text as it is, inside strings of Python and JSON, in HTML and in URLs, and in one of those inside another."""
    found = {text}
    for _ in range(2):
        found |= {form for each in found for form in _escaped(each)}
    return found


def _escaped(text: str) -> Iterator[str]:
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    yield from (repr(text)[1:-1], ascii(text)[1:-1])
    yield repr("'\"" + text)[4:-1]  # beside both kinds of quotes: the single ones are escaped
    marked = html.escape(text)
    yield from (html.escape(text, quote=False), marked, marked.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"))
    yield from (quote(text, errors="replace"), quote(text, safe="", errors="replace"))
    yield quote_plus(text, errors="replace")
