"""The tokens that recall tasks are made of, for one tokenizer: letters, digits, marks, and prose as filler.

The format is that of `qwenlab.tasks.recall`: ` a:3 k:7` lists pairs and ` k?7` asks for one. A key is a letter after a
space, a value is a digit. If there are more keys than letters, a key is two letters, ` a b:3`. Sequences are built from
token ids, so that their lengths are exact. Pairs decoded to text encode to the same tokens again, because a space
begins a word; the filler may not, because some tokens of the prose are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any
from weakref import WeakKeyDictionary

from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.held_out import texts
from qwenlab.tasks.recall import KEYS, VALUES
from qwenlab.tasks.task import Task

Key = tuple[int, ...]

_MARKS = {":", "?"}
_BY_TOKENIZER: WeakKeyDictionary[Any, Alphabet] = WeakKeyDictionary()  # tokenizing the haystack takes a while


@dataclass(frozen=True)
class Alphabet:
    """Token ids. The haystack is held-out prose without digits and marks, so that no pair occurs in it."""

    letters: tuple[int, ...]  # a space and a letter each
    values: tuple[int, ...]  # a digit each
    colon: int  # between a key and its value in the list
    question_mark: int  # the same in a question
    newline: int  # between the list and the questions
    haystack: tuple[int, ...]

    def fit(self, keys: Callable[[int], int], where: str) -> tuple[int, int]:
        """The number of keys in a sequence, and of letters in a key: one if there are enough letters, else two.

        `keys` is the number of keys by the tokens of a key with its mark and value. Raises BadArgument for too many.
        """
        letters = len(self.letters)
        for width, most in ((1, letters), (2, letters * (letters - 1))):
            if (count := keys(width + 2)) <= most:
                return count, width
        raise BadArgument(
            f"{where} takes {count:,} different keys, and {letters} letters make {most:,} by two.\n"
            "Ask for a smaller size."
        )

    def pairs(self, count: int, width: int, rng: random.Random) -> list[tuple[Key, int]]:
        """Pairs of distinct keys, `width` letters each, and values drawn uniformly."""
        keys = list(permutations(self.letters, width))
        return [(key, rng.choice(self.values)) for key in rng.sample(keys, count)]

    def listed(self, pairs: Sequence[tuple[Key, int]]) -> list[int]:
        """` a:3 k:7`"""
        return [token for key, value in pairs for token in (*key, self.colon, value)]

    def questions(self, pairs: Sequence[tuple[Key, int]]) -> list[int]:
        """` a?3 k?7`"""
        return [token for key, value in pairs for token in (*key, self.question_mark, value)]

    def prose(self, length: int, rng: random.Random) -> list[int]:
        """`length` consecutive tokens of the haystack from a random position, continued from its beginning."""
        start = rng.randrange(len(self.haystack))
        return [self.haystack[(start + step) % len(self.haystack)] for step in range(length)]

    def task(self, name: str, sequences: Sequence[tuple[list[int], list[int]]]) -> Task:
        """The task of some sequences, each with the positions of the values that are asked for."""
        tokens, asked = zip(*sequences, strict=True)
        return Task(name, tuple(map(tuple, tokens)), tuple(map(tuple, asked)), 1 / len(self.values), self.values)


def alphabet(checkpoint: Checkpoint) -> Alphabet:
    """The alphabet of a checkpoint's tokenizer: the letters and digits that are one token each.

    Raises BadArgument for a tokenizer with fewer than two letters or digits, or without a mark, as single tokens.
    """
    require_checkpoint(checkpoint)
    tokenizer = checkpoint.tokenizer
    if tokenizer not in _BY_TOKENIZER:
        _BY_TOKENIZER[tokenizer] = _new(tokenizer, checkpoint.facts.source)
    return _BY_TOKENIZER[tokenizer]


def _new(tokenizer: Any, source: str) -> Alphabet:
    letters = [token for key in KEYS if (token := _single_token(tokenizer, f" {key}")) is not None]
    values = [token for digit in VALUES if (token := _single_token(tokenizer, digit)) is not None]
    colon, question_mark, newline = marks = [_single_token(tokenizer, mark) for mark in (":", "?", "\n")]
    if len(letters) < 2 or len(values) < 2 or colon is None or question_mark is None or newline is None:
        raise BadArgument(
            f"The tokenizer of {source} cannot write recall tasks: of ' a', ' b', ... it has "
            f"{len(letters)} as one token, of '0' to '9' {len(values)}, and of ':', '?' and a new line "
            f"{3 - marks.count(None)}; two letters, two digits and all marks are needed.\n"
            "Build a Task of your own from its token ids."
        )
    words = tokenizer("".join(texts("prose")), add_special_tokens=False).input_ids
    marked = {token for token in set(words) if _MARKS & set(tokenizer.decode([token]))}
    haystack = tuple(word for word in words if word not in marked)
    return Alphabet(tuple(letters), tuple(values), colon, question_mark, newline, haystack)


def _single_token(tokenizer: Any, piece: str) -> int | None:
    """The token of a piece of text; None if it is not a single token."""
    found = tokenizer(piece, add_special_tokens=False).input_ids
    return int(found[0]) if len(found) == 1 and tokenizer.decode(found) == piece else None
