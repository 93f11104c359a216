"""Recall tasks in a checkpoint's own tokens: associative recall, a needle in a haystack, copying, induction.

Each is exact in length and distance, and has a known chance.
"""

from __future__ import annotations

import random

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.alphabet import alphabet
from qwenlab.tasks.arguments import whole
from qwenlab.tasks.task import Task


def mqar(
    checkpoint: Checkpoint,
    *,
    pairs: int,
    count: int = 64,
    questions: int | None = None,
    length: int | None = None,
    distance: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927): ` a:3 k:7`, a new line, ` k?7 a?3`.

    The values after "?" are asked for.

    pairs      key-value pairs in a sequence; their keys differ. If there are more pairs than letters, all keys are two
               letters
    questions  pairs that are asked for, once each, in random order; by default all
    length     tokens of each sequence, exactly: held-out prose fills the space between pairs and questions
    distance   tokens from the value of a pair to its answer, exactly and for every question. The last pairs are asked
               for in the order of the list, as many as fit into the distance, and prose fills the rest. By default
               distances follow from the random order. If there is a length too, prose before the first pair fills it

    `count` independent sequences are drawn by `seed`; `name` is that of the task, by default the function call. Chance
    is 1 / number of values: 0.1 with ten digits. Raises BadArgument for sizes that do not fit.
    """
    whole("mqar", pairs=pairs, count=count)
    given = dict(questions=questions, length=length, distance=distance)
    sizes = {key: value for key, value in given.items() if value is not None}
    whole("mqar", **sizes)
    parts = alphabet(checkpoint)
    call = f"mqar({', '.join(f'{key}={value}' for key, value in {'pairs': pairs, **sizes}.items())})"
    _, width = parts.fit(lambda size: pairs, call)
    size, asked = width + 2, pairs if questions is None else questions
    if asked > pairs:
        raise BadArgument(f"{call}: there are {pairs} pairs to ask for, once each.\nAsk {pairs} questions or fewer.")
    if distance is not None:
        fitting = (distance - 1) // size
        if fitting < (questions or 1):
            raise BadArgument(
                f"{call}: from a value to its question are {questions or 1} pairs of {size} tokens and a new line.\n"
                f"Give a distance of {size * (questions or 1) + 1} or more, or fewer questions."
            )
        asked = min(asked, fitting)
    gap = 0 if distance is None else distance - 1 - size * asked
    shortest = size * (pairs + asked) + 1 + gap
    left = 0 if length is None else length - shortest
    if left < 0:
        raise BadArgument(f"{call}: the shortest such sequence has {shortest:,} tokens.\nGive that length, or more.")
    before, between = (0, left) if distance is None else (left, gap)

    rng, sequences = random.Random(f"{call}-{seed}"), []
    for _ in range(count):
        memory = parts.pairs(pairs, width, rng)
        wanted = rng.sample(memory, asked) if distance is None else memory[-asked:]
        tokens = [*parts.prose(before, rng), *parts.listed(memory), *parts.prose(between, rng), parts.newline]
        answers = range(len(tokens) + size - 1, len(tokens) + size * asked, size)
        sequences.append((tokens + parts.questions(wanted), list(answers)))
    return parts.task(call if name is None else name, sequences)


def needle(
    checkpoint: Checkpoint, *, length: int, position: float, count: int = 64, seed: int = 0, name: str | None = None
) -> Task:
    """One pair, ` k:7`, in held-out prose, then a new line and its question, ` k?7`. The last token is asked for.

    length    tokens of each sequence, exactly, question and answer included
    position  share of the prose before the pair: 0 puts it at the beginning, 1 right before the question

    The prose has no digit, ":" or "?". Where it is longer than the package's held-out prose, that repeats. For the
    other arguments, chance and errors see `mqar`.
    """
    call = f"needle(length={length}, position={position})"
    whole("needle", count=count)
    whole("needle", least=7, length=length)
    if isinstance(position, bool) or not isinstance(position, int | float) or not 0 <= position <= 1:
        raise BadArgument(f"{call}: give the share of the prose before the needle, from 0 to 1.")
    parts = alphabet(checkpoint)
    rng, sequences = random.Random(f"needle(length={length}, depth={position})-{seed}"), []  # keeps published sequences
    for _ in range(count):
        pair = parts.pairs(1, 1, rng)
        prose = parts.prose(length - 7, rng)
        cut = round(position * len(prose))
        tokens = [*prose[:cut], *parts.listed(pair), *prose[cut:], parts.newline, *parts.questions(pair)]
        sequences.append((tokens, [length - 1]))
    return parts.task(call if name is None else name, sequences)


def copying(checkpoint: Checkpoint, *, length: int, count: int = 64, seed: int = 0, name: str | None = None) -> Task:
    """A list twice: ` k?7 a?3`, a new line, and ` k?7 a?3` again. The values of the second copy are asked for.

    length  tokens of each sequence, exactly: the longest list that fits twice, after a few tokens of held-out prose if
            two copies do not fill it. If there are more keys than letters, all keys are two letters

    In `mqar` another mark lists a pair than asks for it; here tokens only have to be repeated. Keys are not asked for,
    because their chance differs. For the other arguments, chance and errors see `mqar`.
    """
    call = f"copying(length={length})"
    whole("copying", count=count)
    whole("copying", least=7, length=length)
    parts = alphabet(checkpoint)
    items, width = parts.fit(lambda size: (length - 1) // (2 * size), call)
    size = width + 2
    rng, sequences = random.Random(f"{call}-{seed}"), []
    for _ in range(count):
        copy = parts.questions(parts.pairs(items, width, rng))
        tokens = [*parts.prose(length - 1 - 2 * len(copy), rng), *copy, parts.newline, *copy]
        sequences.append((tokens, list(range(length - len(copy) + size - 1, length, size))))
    return parts.task(call if name is None else name, sequences)


def induction(
    checkpoint: Checkpoint,
    *,
    length: int,
    distance: int | None = None,
    count: int = 64,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """[A][B] ... [A] -> [B] (Olsson et al. 2022, arXiv:2209.11895): ` k?7 a?3 B?0 a?3`. The last token is asked for.

    A is a key with its mark, which occurred once before, and B the value that followed it.

    length    tokens of each sequence, exactly: as many distinct keys as fit, after a few tokens of held-out prose if
              they do not fill it. If there are more keys than letters, all keys are two letters
    distance  tokens from B to its repetition: a multiple of the tokens of a key with its mark and value. By default the
              repeated key is drawn at random

    For the other arguments, chance and errors see `mqar`.
    """
    call = f"induction(length={length}{'' if distance is None else f', distance={distance}'})"
    whole("induction", count=count)
    whole("induction", least=6, length=length)
    if distance is not None:
        whole("induction", distance=distance)
    parts = alphabet(checkpoint)
    items, width = parts.fit(lambda size: (length - size) // size, call)
    size = width + 2
    if distance is not None and (distance % size or not size <= distance <= items * size):
        raise BadArgument(
            f"{call}: a key with its mark and value is {size} tokens, and {items} of these precede the repetition.\n"
            f"Give a multiple of {size} up to {items * size} as the distance, or another length."
        )
    rng, sequences = random.Random(f"{call}-{seed}"), []
    for _ in range(count):
        pairs = parts.pairs(items, width, rng)
        repeated = rng.choice(pairs) if distance is None else pairs[-(distance // size)]
        before = parts.prose(length - size * (items + 1), rng)
        sequences.append(([*before, *parts.questions(pairs), *parts.questions([repeated])], [length - 1]))
    return parts.task(call if name is None else name, sequences)
