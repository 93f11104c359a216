"""Checks of arguments that many functions take: integers, choices, probabilities.

Each returns the value, and raises BadArgument otherwise. `where` is how the message names the function: "TopK",
"trace", "ablations.controls".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from qwenlab.errors import BadArgument

T = TypeVar("T")


def integer(where: str, name: str, value: Any, *, least: int = 0, most: int | None = None, unit: str = "") -> int:
    """An integer in [least, most]; a bool is not one. `unit` names what it counts: "tokens"."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"{least:,} or more" if most is None else f"from {least:,} to {most:,}"
        raise BadArgument(f"{where}({name}={value!r}): give an integer{f' number of {unit}' * bool(unit)}, {bounds}.")
    return value


def choice(where: str, name: str, value: T, options: Iterable[T]) -> T:
    """One of some options; the message suggests the nearest one."""
    options = list(options)
    if isinstance(value, bool) or value not in options:
        near = get_close_matches(str(value), [str(option) for option in options], 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise BadArgument(f"{where}({name}={value!r}): give one of {', '.join(map(repr, options))}{hint}")
    return value


def probability(where: str, name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not 0 <= value <= 1:
        raise BadArgument(f"{where}({name}={value!r}): give a number from 0 to 1.")
    return float(value)
