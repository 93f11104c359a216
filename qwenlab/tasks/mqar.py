"""Multi-query associative recall: pairs are told, and later asked for (Arora et al. 2023, arXiv:2312.04927)."""

from __future__ import annotations

import random
from typing import Any

from qwenlab.errors import BadArgument
from qwenlab.tasks.alphabet import alphabet
from qwenlab.tasks.arguments import whole
from qwenlab.tasks.task import Task


def mqar(
    checkpoint: Any,
    *,
    pairs: int,
    count: int = 64,
    questions: int | None = None,
    length: int | None = None,
    distance: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """Multi-query associative recall: ` a:3 k:7`, a new line, and ` k?7 a?3`. The values after "?" are asked for.

    pairs      of a key and a value; keys of a sequence are all different. Where there are more pairs than letters, all
               keys are two letters
    count      sequences, independent of each other
    questions  pairs that are asked for, once each, in random order; by default all
    length     tokens of each sequence, exactly: held-out prose stands between pairs and questions
    distance   tokens from a pair's value to where it is asked for, exactly and for every question: the last pairs are
               asked for in the order in which they were told, as many of them as come between, and prose fills what is
               left between. By default distances are whatever the random order makes them. With a length too, prose
               before the first pair makes it up
    seed       of keys, values, order and prose;  name: of the task; by default one that says all this

    Chance is 1 / number of values: 0.1 with ten digits. Raises BadArgument for a size that cannot be made.
    """
    whole("mqar", pairs=pairs, count=count)
    sizes = dict(questions=questions, length=length, distance=distance)
    whole("mqar", **{key: value for key, value in sizes.items() if value is not None})
    parts = alphabet(checkpoint)
    told = _said(pairs=pairs, **sizes)
    _, width = parts.fit(lambda size: pairs, told)
    size, most = width + 2, pairs if questions is None else questions
    if most > pairs:
        raise BadArgument(f"{told}: there are {pairs} pairs to ask for, once each.\nAsk {pairs} questions or fewer.")
    if distance is not None:
        fitting = (distance - 1) // size
        if fitting < (questions or 1):
            raise BadArgument(
                f"{told}: from a value to its question are {questions or 1} pairs of {size} tokens and a new line.\n"
                f"Give a distance of {size * (questions or 1) + 1} or more, or fewer questions."
            )
        most = min(most, fitting)
    gap = 0 if distance is None else distance - 1 - size * most
    shortest = size * (pairs + most) + 1 + gap
    left = 0 if length is None else length - shortest
    if left < 0:
        raise BadArgument(f"{told}: the shortest such sequence has {shortest:,} tokens.\nGive that length, or more.")
    before, between = (0, left) if distance is None else (left, gap)

    rng, made = random.Random(f"{told}-{seed}"), []
    for _ in range(count):
        memory = parts.pairs(pairs, width, rng)
        wanted = rng.sample(memory, most) if distance is None else memory[-most:]
        tokens = [*parts.filler(before, rng), *parts.told(memory), *parts.filler(between, rng), parts.newline]
        answers = range(len(tokens) + size - 1, len(tokens) + size * most, size)
        made.append((tokens + parts.asked(wanted), list(answers)))
    return parts.task(told if name is None else name, made)


def _said(**values: int | None) -> str:
    """The task's name: what was asked for."""
    return f"mqar({', '.join(f'{name}={value}' for name, value in values.items() if value is not None)})"
