"""What recall tasks are written with, in a checkpoint's own tokens: ` a:3 k:7`, ` k?7`, and text to fill the space.

It is the format of `qwenlab.tasks.recall`, which the toys were trained on: a key is a letter after a space, a value a
digit. Where there are more keys than letters, a key is two letters, ` a b:3`. Sequences are put together from token
ids, so that their lengths are exact. Pairs read as text are the same tokens again, since a space begins a word; prose,
from which some tokens are left out, may be others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any
from weakref import WeakKeyDictionary

from qwenlab.checkpoint.open import require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.held_out import texts
from qwenlab.tasks.recall import KEYS, VALUES
from qwenlab.tasks.task import Task

Key = tuple[int, ...]

_MARKS = {":", "?"}
_KEPT: WeakKeyDictionary[Any, Alphabet] = WeakKeyDictionary()  # by tokenizer: the haystack takes a while to read


@dataclass(frozen=True)
class Alphabet:
    """Token ids of the parts.

    letters   a space and a letter each;  values: a digit each
    tells     ":", between a key and its value;  asks: "?", between a key that is asked for and its value
    newline   between what tells and what asks
    haystack  of held-out prose, which has no digit, without the tokens that have a mark: no pair can be read in it
    """

    letters: tuple[int, ...]
    values: tuple[int, ...]
    tells: int
    asks: int
    newline: int
    haystack: tuple[int, ...]

    def fit(self, keys: Callable[[int], int], where: str) -> tuple[int, int]:
        """How many keys a sequence takes and of how many letters they are: of one if there are enough, else of two.

        keys  how many it takes if each, with its mark and value, is so many tokens. Raises BadArgument, in the name of
              `where`, for more than there are.
        """
        letters = len(self.letters)
        for width, most in ((1, letters), (2, letters * (letters - 1))):
            if (number := keys(width + 2)) <= most:
                return number, width
        raise BadArgument(
            f"{where} takes {number:,} different keys, and {letters} letters make {most:,} by two.\n"
            "Ask for a smaller size."
        )

    def pairs(self, count: int, width: int, rng: random.Random) -> list[tuple[Key, int]]:
        """So many pairs: keys all different, of `width` letters, and values drawn evenly."""
        keys = list(permutations(self.letters, width))
        return [(key, rng.choice(self.values)) for key in rng.sample(keys, count)]

    def told(self, pairs: Sequence[tuple[Key, int]]) -> list[int]:
        """` a:3 k:7`"""
        return [token for key, value in pairs for token in (*key, self.tells, value)]

    def asked(self, pairs: Sequence[tuple[Key, int]]) -> list[int]:
        """` a?3 k?7`"""
        return [token for key, value in pairs for token in (*key, self.asks, value)]

    def task(self, name: str, sequences: Sequence[tuple[list[int], list[int]]]) -> Task:
        """The task of some sequences, each with the positions of the values that are asked for."""
        tokens, asked = zip(*sequences, strict=True)
        return Task(name, tuple(map(tuple, tokens)), tuple(map(tuple, asked)), 1 / len(self.values), self.values)

    def filler(self, count: int, rng: random.Random) -> list[int]:
        """So many tokens of the haystack in a row, from a random place on, and from its beginning after its end."""
        start = rng.randrange(len(self.haystack))
        return [self.haystack[(start + step) % len(self.haystack)] for step in range(count)]


def alphabet(checkpoint: Any) -> Alphabet:
    """The alphabet of a checkpoint's tokenizer: the letters and digits that are one token each.

    Raises BadArgument for a tokenizer that has fewer than two of either, or none for a mark.
    """
    require_checkpoint(checkpoint)
    tokenizer = checkpoint.tokenizer
    if tokenizer not in _KEPT:
        _KEPT[tokenizer] = _made(tokenizer, checkpoint.facts.source)
    return _KEPT[tokenizer]


def _made(tokenizer: Any, source: str) -> Alphabet:
    letters = [token for key in KEYS if (token := _token(tokenizer, f" {key}")) is not None]
    values = [token for digit in VALUES if (token := _token(tokenizer, digit)) is not None]
    tells, asks, newline = (_token(tokenizer, mark) for mark in (":", "?", "\n"))
    if len(letters) < 2 or len(values) < 2 or tells is None or asks is None or newline is None:
        raise BadArgument(
            f"The tokenizer of {source} cannot write recall tasks: of ' a', ' b', ... it has "
            f"{len(letters)} as one token, of '0' to '9' {len(values)}, and of ':', '?' and a new line "
            f"{sum(mark is not None for mark in (tells, asks, newline))}; two letters, two digits and all marks are "
            "needed.\nBuild a Task of your own from its token ids."
        )
    words = tokenizer("".join(texts("prose")), add_special_tokens=False).input_ids
    pieces = {token: tokenizer.decode([token]) for token in set(words)}
    marked = {token for token, piece in pieces.items() if _MARKS & set(piece)}
    return Alphabet(
        tuple(letters), tuple(values), tells, asks, newline, tuple(word for word in words if word not in marked)
    )


def _token(tokenizer: Any, piece: str) -> int | None:
    """The one token that a piece of text is, or None."""
    found = tokenizer(piece, add_special_tokens=False).input_ids
    return int(found[0]) if len(found) == 1 and tokenizer.decode(found) == piece else None
