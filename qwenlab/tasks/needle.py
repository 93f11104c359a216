"""A needle in a haystack: one pair somewhere in prose, asked for at the end."""

from __future__ import annotations

import random
from typing import Any

from qwenlab.errors import BadArgument
from qwenlab.tasks.alphabet import alphabet
from qwenlab.tasks.arguments import whole
from qwenlab.tasks.task import Task


def needle(
    checkpoint: Any, *, length: int, depth: float, count: int = 64, seed: int = 0, name: str | None = None
) -> Task:
    """One pair, ` k:7`, in held-out prose, then a new line and its question, ` k?7`. The last token is asked for.

    length  tokens of each sequence, exactly, question and answer included
    depth   share of the prose that stands before the pair: 0 it comes first, 1 right before the question
    count   sequences;  seed: of key, value and prose;  name: of the task, by default one that says all this

    The prose has no digit, ":" or "?" in it. Haystacks longer than the package's held-out prose go round in it. Chance
    is 1 / number of values: 0.1 with ten digits. Raises BadArgument.
    """
    told = f"needle(length={length}, depth={depth})"
    whole("needle", count=count)
    whole("needle", least=7, length=length)
    if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
        raise BadArgument(f"{told}: give the share of the prose before the needle, from 0 to 1.")
    parts = alphabet(checkpoint)
    rng, made = random.Random(f"{told}-{seed}"), []
    for _ in range(count):
        hidden = parts.pairs(1, 1, rng)
        prose = parts.filler(length - 7, rng)
        cut = round(depth * len(prose))
        tokens = [*prose[:cut], *parts.told(hidden), *prose[cut:], parts.newline, *parts.asked(hidden)]
        made.append((tokens, [length - 1]))
    return parts.task(told if name is None else name, made)
