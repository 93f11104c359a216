"""Checks of arguments that several functions take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from qwenlab.arguments import integer
from qwenlab.errors import BadArgument


def whole(where: str, least: int = 1, **values: Any) -> None:
    """Raise BadArgument for a value that is not an integer of at least `least`; `where` names the function."""
    for name, value in values.items():
        integer(where, name, value, least=least)


def list_of_texts(where: str, texts: Any) -> list[str]:
    """The texts as a list; raises BadArgument for an empty list, a single string, or an item that is not a string."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        raise BadArgument(f"{where}(checkpoint, texts): give a list of at least one text, not a single string.")
    if wrong := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
        first = wrong[0]
        raise BadArgument(f"{where}(checkpoint, texts): text {first} is {type(texts[first]).__name__}, not a string.")
    return list(texts)


def named_differently(where: str, what: str, items: Sequence[Any]) -> None:
    """Raise BadArgument if two items have the same name."""
    counts = Counter(item.name for item in items)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise BadArgument(
            f"{where}: several {what} are named {', '.join(map(repr, twice))}.\nGive them different names."
        )


def one_per_text(where: str, labels: Sequence[str] | None, count: int) -> list[str]:
    """The label of each of `count` texts, "" without labels; raises BadArgument for another number of labels."""
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        raise BadArgument(f"{where}(labels=...): give a name for each of the {count} texts, in a list.")
    return [str(label) for label in labels]
