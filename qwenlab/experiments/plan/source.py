"""Read YAML with the line number of every value."""

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
    """The content of a YAML file, and the line of each key: `lines[("sweep", "grid", "context")]` is 9."""

    path: Path
    content: Any = field(repr=False)  # may contain a secret
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def at(self, *key: str | int) -> str:
        """`path:line` of a key; if the file does not have the key, the line of its nearest parent."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"


def read_yaml(path: Path) -> YamlSource:
    """Read a YAML file. Raises BadSpec if it is not YAML, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise BadSpec(f"{path}: not UTF-8 text: {error}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise BadSpec(f"{path}:{line}: not YAML: {error.problem or error.context}.") from error
    lines: dict[KeyPath, int] = {}
    if node is not None:
        _add_lines(node, (), path, lines)
    return YamlSource(path, yaml.safe_load(text), lines)


def _add_lines(node: yaml.Node, key: KeyPath, path: Path, lines: dict[KeyPath, int]) -> None:
    """Add the line of this value, and those of all values inside it."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner, line = (*key, name.value), name.start_mark.line + 1
            if inner in lines:
                raise BadSpec(f"{path}:{line}: {name.value!r} appears twice; it is also on line {lines[inner]}.")
            lines[inner] = line
            _add_lines(value, inner, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _add_lines(value, (*key, index), path, lines)


def parsed(arguments: Sequence[str], option: str) -> dict[str, Any]:
    """Parse the `name=value` arguments of a command-line option; values are YAML. Raises BadSpec."""
    values = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise BadSpec(f"{option} {argument}: write name=value.")
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            # The value may be a secret, and YAML's error messages quote it.
            raise BadSpec(f"{option} {name}: the value is not YAML. Put it into quotes: {name}='\"...\"'.") from None
    return values
