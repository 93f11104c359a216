"""A YAML file whose every value knows the line it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qwenlab.errors import BadSpec

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """What a YAML file says, and where it says it: `lines[("sweep", "grid", "context")]` is 9."""

    path: Path
    content: Any = field(repr=False)  # a secret may stand in it
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def at(self, *key: str | int) -> str:
        """`path:line` of a key; of the nearest one above it where it is not written down."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"


def read_yaml(path: Path) -> YamlSource:
    """Read a YAML file. Raises BadSpec where it is no YAML, or gives one key twice."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise BadSpec(f"{path}: no UTF-8 text: {error}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise BadSpec(f"{path}:{line}: no YAML: {error.problem or error.context}.") from error
    lines: dict[KeyPath, int] = {}
    if node is not None:
        _note(node, (), path, lines)
    return YamlSource(path, yaml.safe_load(text), lines)


def _note(node: yaml.Node, key: KeyPath, path: Path, lines: dict[KeyPath, int]) -> None:
    """Note the line of this value and of all within it."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner, line = (*key, name.value), name.start_mark.line + 1
            if inner in lines:
                raise BadSpec(f"{path}:{line}: {name.value!r} is given a second time; line {lines[inner]} has it too.")
            lines[inner] = line
            _note(value, inner, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note(value, (*key, index), path, lines)


def parsed(words: Sequence[str], what: str) -> dict[str, Any]:
    """`name=value` words of a command line, each value read as YAML. Raises BadSpec."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise BadSpec(f"{what} {word}: write name=value.")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            # The value may be a secret, and YAML's complaints quote it.
            raise BadSpec(f"{what} {name}: the value is not YAML. Put it into quotes: {name}='\"...\"'.") from None
    return found
