"""Remove the values of secrets from text, JSON and notebooks."""

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
"""Shortest value that is searched for, in characters. Shorter ones, such as `True`, occur in ordinary text."""

_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_JSON = re.compile(r"application/(.*\+)?json")


class Redaction:
    """Replaces every value of these secrets, and every item inside them, by HIDDEN.

    A value is found unchanged, escaped as in Python, JSON, HTML and URLs, and interrupted by terminal colours. Numbers
    are found by their decimal digits. Values that a notebook encodes, splits or shortens are not found.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        texts = {text for secret in secrets for value in (secret.value, secret.text) for text in _texts(value)}
        texts = {text for text in texts if len(text) >= SHORTEST}
        self._forms = sorted({form for text in texts for form in _forms(text)}, key=lambda form: (-len(form), form))

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Redaction:
        """The redaction of the secrets among the parameters."""
        return cls(value for value in parameters.values() if isinstance(value, Secret))

    def text(self, text: str) -> str:
        """The text without the secrets."""
        before = None
        while text != before:  # the parts left and right of a secret can form another one; text gets shorter
            before = text
            for form in self._forms:
                text = text.replace(form, HIDDEN)
            if "\x1b" in text:
                text = self._coloured(text)
        return text

    def json(self, content: Any, *, keys: bool = False) -> Any:
        """JSON without the secrets in its strings and numbers, and with `keys` in the keys of its objects."""
        match content:
            case str():
                return self.text(content)
            case int() | float():
                return HIDDEN if str(content) in self._forms else content
            case list():
                return [self.json(item, keys=keys) for item in content]
            case dict():
                return {self.text(key) if keys else key: self.json(item, keys=keys) for key, item in content.items()}
        return content

    def notebook(self, notebook: Any) -> Any:
        """A copy of a notebook without the secrets in sources, outputs, attachments and metadata; as valid as it is."""
        if not self._forms:
            return notebook
        cells = [self._cell(cell) for cell in notebook.cells]
        return nbformat.from_dict({**notebook, "metadata": self.json(notebook.metadata), "cells": cells})

    def _cell(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        metadata = self.json(cell["metadata"])
        if "tags" in metadata:  # the format requires unique tags
            metadata["tags"] = list(dict.fromkeys(metadata["tags"]))
        changed: dict[str, Any] = {"metadata": metadata, "source": self._lines(cell["source"])}
        if "outputs" in cell:
            changed["outputs"] = [self._output(output) for output in cell["outputs"]]
        if "attachments" in cell:
            changed["attachments"] = {name: self._bundle(bundle) for name, bundle in cell["attachments"].items()}
        return {**cell, **changed}

    def _output(self, output: Mapping[str, Any]) -> dict[str, Any]:
        match output["output_type"]:
            case "stream":
                return {**output, "text": self._lines(output["text"])}
            case "error":
                return {**output, **{name: self.json(output[name]) for name in ("ename", "evalue", "traceback")}}
        return {**output, "data": self._bundle(output["data"]), "metadata": self.json(output["metadata"])}

    def _bundle(self, bundle: Mapping[str, Any]) -> dict[str, Any]:
        """The content of one output or attachment, by MIME type."""
        return {
            name: self.json(content, keys=True) if _JSON.fullmatch(name) else self._lines(content)
            for name, content in bundle.items()
        }

    def _lines(self, text: str | list[str]) -> str:
        """Redacted text; the format also allows a list of lines."""
        return self.text(text if isinstance(text, str) else "".join(text))

    def _coloured(self, text: str) -> str:
        """Text without the longest secret that terminal colours interrupt; the same text if there is none."""
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
    """The plain texts of a value and of the items inside it. Keys of a dict are not secret."""
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
            for item in value.values() if isinstance(value, dict) else value:
                yield from _texts(item)


def _forms(text: str) -> set[str]:
    """A text unchanged, escaped as in Python, JSON, HTML and URLs, and escaped twice in any combination of those."""
    forms = {text}
    for _ in range(2):
        forms |= {escaped for form in forms for escaped in _escaped(form)}
    return forms


def _escaped(text: str) -> Iterator[str]:
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    yield from (repr(text)[1:-1], ascii(text)[1:-1])
    yield repr("'\"" + text)[4:-1]  # with both kinds of quotes in the text, repr escapes the single ones
    marked = html.escape(text)
    yield from (html.escape(text, quote=False), marked, marked.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"))
    yield from (quote(text, errors="replace"), quote(text, safe="", errors="replace"))
    yield quote_plus(text, errors="replace")
