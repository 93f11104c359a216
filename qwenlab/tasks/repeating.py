"""Copying and induction: what was written is written again, word for word."""

from __future__ import annotations

import random
from typing import Any

from qwenlab.errors import BadArgument
from qwenlab.tasks.alphabet import alphabet
from qwenlab.tasks.arguments import whole
from qwenlab.tasks.task import Task


def copying(checkpoint: Any, *, length: int, count: int = 64, seed: int = 0, name: str | None = None) -> Task:
    """A list twice: ` k?7 a?3`, a new line, and ` k?7 a?3` again. The values of the second copy are asked for.

    length  tokens of each sequence, exactly: as long a list as fits, and before it a few tokens of held-out prose where
            the length is not one that two copies have. Beyond what the letters can label, keys are two letters
    count   sequences;  seed: of keys, values and prose;  name: of the task, by default one that says all this

    In `mqar` a pair is told by one mark and asked for by another; here nothing is to be understood, only repeated. The
    keys are not asked for: their chance would be another. Chance is 1 / number of values. Raises BadArgument.
    """
    told = f"copying(length={length})"
    whole("copying", count=count)
    whole("copying", least=7, length=length)
    parts = alphabet(checkpoint)
    items, width = parts.fit(lambda size: (length - 1) // (2 * size), told)
    size = width + 2
    rng, made = random.Random(f"{told}-{seed}"), []
    for _ in range(count):
        once = parts.asked(parts.pairs(items, width, rng))
        tokens = [*parts.filler(length - 1 - 2 * len(once), rng), *once, parts.newline, *once]
        made.append((tokens, list(range(length - len(once) + size - 1, length, size))))
    return parts.task(told if name is None else name, made)


def induction(
    checkpoint: Any,
    *,
    length: int,
    distance: int | None = None,
    count: int = 64,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """[A][B] ... [A] -> [B] (Olsson et al. 2022, arXiv:2209.11895): ` k?7 a?3 B?0 a?3`. The last token is asked for.

    A is a key with its mark, which stood once before, and B the value that followed it there.

    length    tokens of each sequence, exactly: as many keys as fit, all different, and before them a few tokens of
              held-out prose where the length is not one that they have. Where there are more keys than letters, all
              are two letters
    distance  tokens from B to its repetition, a multiple of the tokens of a key with its mark and value, since nothing
              else stands between; by default any of the keys is repeated
    count     sequences;  seed: of keys, values and prose;  name: of the task, by default one that says all this

    Chance is 1 / number of values. Raises BadArgument.
    """
    told = f"induction(length={length}{'' if distance is None else f', distance={distance}'})"
    whole("induction", count=count)
    whole("induction", least=6, length=length)
    if distance is not None:
        whole("induction", distance=distance)
    parts = alphabet(checkpoint)
    items, width = parts.fit(lambda size: (length - size) // size, told)
    size = width + 2
    if distance is not None and (distance % size or not size <= distance <= items * size):
        raise BadArgument(
            f"{told}: a key with its mark and value is {size} tokens, and {items} such stand before the repetition.\n"
            f"Give a multiple of {size} up to {items * size} as the distance, or another length."
        )
    rng, made = random.Random(f"{told}-{seed}"), []
    for _ in range(count):
        pairs = parts.pairs(items, width, rng)
        repeated = rng.choice(pairs) if distance is None else pairs[-(distance // size)]
        before = parts.filler(length - size * (items + 1), rng)
        made.append(([*before, *parts.asked(pairs), *parts.asked([repeated])], [length - 1]))
    return parts.task(told if name is None else name, made)
