"""Held-out texts that ship with the package, by domain. No toy checkpoint was trained on them."""

from __future__ import annotations

from importlib.resources import files

from qwenlab.arguments import choice
from qwenlab.errors import BadArgument

DOMAINS = ("code", "prose", "arithmetic", "recall")
"""CPython's standard library; King James Bible; running sums; key:value pairs, later asked for."""

SEPARATOR = "\f"


def texts(domain: str, count: int | None = None) -> list[str]:
    """The first `count` held-out texts of a domain, or all of them.

    Raises BadArgument for an unknown domain, or if it has fewer texts.
    """
    choice("texts", "domain", domain, DOMAINS)
    found = files("qwenlab.tasks").joinpath("data", f"{domain}.txt").read_bytes().decode().split(SEPARATOR)
    if count is not None and not 1 <= count <= len(found):
        raise BadArgument(
            f"texts({domain!r}, count={count}): the domain has {len(found)} texts; ask for 1 to {len(found)}."
        )
    return found[:count]
