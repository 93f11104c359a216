"""Associative recall as text: pairs are listed, then asked for. The one task whose right answer is known exactly.

A sequence of `pairs` pairs reads ` a:3 k:7 B:0` then a new line and the questions ` k?7 a?3`. Keys are the 52 letters,
values the 10 digits, so an answer by guessing is right with probability 0.1.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from qwenlab.errors import BadArgument

KEYS = string.ascii_letters
VALUES = string.digits
CHANCE = 1 / len(VALUES)


def recall_text(pairs: int, questions: int, rng: random.Random) -> str:
    """One recall sequence: `pairs` distinct keys with values, then `questions` keys asked for, each with its answer."""
    if not 1 <= pairs <= len(KEYS):
        raise BadArgument(f"pairs={pairs} is not possible: there is one letter a key.\nAsk for 1 to {len(KEYS)} pairs.")
    memory = {key: rng.choice(VALUES) for key in rng.sample(KEYS, pairs)}
    asked = _asked(list(memory), questions, rng)
    return "".join(f" {k}:{v}" for k, v in memory.items()) + "\n" + "".join(f" {k}?{memory[k]}" for k in asked) + "\n"


def recall_texts(pairs: int, count: int, *, questions: int | None = None, seed: int = 0) -> list[str]:
    """`count` independent recall sequences; by default each pair is asked for once, in random order."""
    rng = random.Random(f"recall-{seed}-{pairs}")
    return [recall_text(pairs, pairs if questions is None else questions, rng) for _ in range(count)]


def _asked(keys: list[str], questions: int, rng: random.Random) -> Iterator[str]:
    """Keys in random order, each once before any a second time."""
    while questions > 0:
        rng.shuffle(keys)
        yield from keys[:questions]
        questions -= len(keys)
