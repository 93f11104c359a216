"""`Task`: sequences of tokens, and the tokens in them that a model is scored on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwenlab.errors import BadArgument


@dataclass(frozen=True)
class Task:
    """Sequences of tokens, and the positions in each that are scored.

    name     of the task, in its scores
    tokens   token ids of every sequence
    asked    positions t >= 1 in every sequence: x[t] is scored, as predicted from x[..t-1]
    chance   accuracy of guessing uniformly among the possible answers; None for plain text
    answers  token ids of all possible answers, if these are a closed set
    bytes    UTF-8 bytes of the asked tokens of every sequence, for bits per byte; None where that has no meaning

    Raises BadArgument for fields that are inconsistent.
    """

    name: str
    tokens: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]
    chance: float | None = None
    answers: tuple[int, ...] | None = None
    bytes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.tokens or len(self.asked) != len(self.tokens):
            self._refuse(f"{len(self.tokens)} sequences and asked positions of {len(self.asked)}: give both of each")
        if self.bytes is not None and len(self.bytes) != len(self.tokens):
            self._refuse(f"{len(self.tokens)} sequences and bytes of {len(self.bytes)}: give one number each")
        for index, (sequence, asked) in enumerate(zip(self.tokens, self.asked, strict=True)):
            if not asked or len(set(asked)) < len(asked) or not all(1 <= t < len(sequence) for t in asked):
                self._refuse(
                    f"sequence {index} has {len(sequence)} tokens and asks for positions {list(asked[:8])}: give "
                    "different ones, at least one, from 1 (the first token follows nothing) to the last"
                )
            if self.answers is not None and not {sequence[t] for t in asked} <= set(self.answers):
                self._refuse(f"sequence {index} asks for a token that is not among its answers")
        if self.chance is not None and not (math.isfinite(self.chance) and 0 <= self.chance <= 1):
            self._refuse(f"chance={self.chance!r} is not a probability")

    def _refuse(self, why: str) -> None:
        raise BadArgument(f"Task {self.name!r}: {why}.")

    def __repr__(self) -> str:
        lengths = sorted(map(len, self.tokens))
        tokens = f"{lengths[0]:,}" if lengths[0] == lengths[-1] else f"{lengths[0]:,} to {lengths[-1]:,}"
        chance = "" if self.chance is None else f", chance {self.chance:.3g}"
        asked = sum(map(len, self.asked))
        return f"Task({self.name!r}: {len(lengths):,} sequences of {tokens} tokens, {asked:,} asked for{chance})"
