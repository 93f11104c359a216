"""Parse a memory budget such as "8GiB", and format numbers of bytes."""

from __future__ import annotations

import re

from qwenlab.errors import BadArgument

_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)")


def memory_bytes(memory: int | str) -> int:
    """Number of bytes of a size: an integer, or text such as "8GiB" (8 * 2**30 bytes) or "8GB" (8 * 10**9 bytes)."""
    if isinstance(memory, str) and (match := _SIZE.fullmatch(memory)) and match[2] in _UNITS:
        size = int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(memory, int) and not isinstance(memory, bool):
        size = memory
    else:
        raise BadArgument(
            f"memory={memory!r} is not a size.\nWrite '8GiB' (8 * 2**30 bytes), '8GB' (8 * 10**9 bytes), '500MiB', or "
            "an integer number of bytes."
        )
    if size <= 0:
        raise BadArgument(f"memory={memory!r} is not above 0.\nGive the bytes that the weights may take, as '8GiB'.")
    return size


def size_text(size: float) -> str:
    """A number of bytes in binary units: "1.50 GiB", "300.00 MiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:,.2f} {unit}"
    return f"{size:,.0f} B"
