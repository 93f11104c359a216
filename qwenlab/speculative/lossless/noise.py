"""Measure the rounding noise of reading a text in blocks: of states, and of the tokens that compete at a position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwenlab.speculative.lossless.witness import COMPONENTS, PlainReading, gaps

COMPETING = 1.0
"""A token competes at a position if the witness finds it less likely than the best by at most this [nat]."""

COMPETITORS = 64
"""Tokens compared at a position, at most: the likeliest."""

POOLED = 0.99
"""Quantile of the changes at all positions together, which a position's noise is at least."""


@dataclass
class PositionNoise:
    """How far reading in blocks moves the logits of the tokens that compete at one position.

    tokens   int [competitor], the witness's best first
    gaps     float [competitor]: the witness's logit of the best minus that of each [nat]
    step     distance of two neighbouring logits of this size in the model's dtype [nat]
    changes  one for each reading in blocks, float [competitor]: change of the gap, without sign [nat]
    """

    tokens: torch.Tensor
    gaps: torch.Tensor
    step: float
    changes: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, logits: torch.Tensor, dtype: torch.dtype) -> PositionNoise:
        """The competitors by the witness's logits, float [vocabulary], which a model of this dtype computed."""
        top = logits.topk(min(COMPETITORS, len(logits)))
        gaps = top.values[0] - top.values
        competing = gaps <= COMPETING
        exponent = math.frexp(float(top.values[0]))[1]
        return cls(top.indices[competing], gaps[competing], math.ldexp(torch.finfo(dtype).eps, exponent - 1))

    def add(self, logits: torch.Tensor) -> None:
        """Take the logits, float [vocabulary], of one reading in blocks."""
        chosen = logits[self.tokens]
        self.changes.append((chosen[0] - chosen - self.gaps).abs().cpu())

    @property
    def largest(self) -> float:
        """The largest change in any reading [nat]; 0 where no token competes with the best."""
        return max((float(change.max()) for change in self.changes), default=0.0)


class WideReadings:
    """Readings of a witness's text in blocks of `width` tokens, with nothing rolled back.

    There are `width` of them, and each starts its blocks at another token. So every position takes every place in a
    block, as it may in a round of drafts, and one reading starts its blocks where a round of that width did. None of
    them uses a logit of the decoding that is checked.

    states  by component, the largest error of the first reading's states against the witness's
    newest  noise of the position that the witness predicts now; it is complete after `finish`
    """

    def __init__(self, witness: PlainReading, prompt: torch.Tensor, width: int) -> None:
        self.states = dict.fromkeys(COMPONENTS, 0.0)
        self._witness, self._width = witness, width
        self._readers = [PlainReading(witness.head, prompt) for _ in range(width)]
        self._tokens: list[torch.Tensor] = []
        self._positions: list[PositionNoise] = []
        self._read = [0] * width  # new tokens that each has read
        self.newest = self._of_witness()

    def follow(self, token: torch.Tensor) -> None:
        """Take the token, int [1], that the witness has just read."""
        self._tokens.append(token)
        self.newest = self._of_witness()
        self._positions.append(self.newest)
        self._advance(len(self._tokens) % self._width)

    def finish(self) -> None:
        """Read the blocks that the end of the text cut short."""
        for number, read in enumerate(self._read):
            if read < len(self._tokens):
                self._advance(number)

    def _of_witness(self) -> PositionNoise:
        return PositionNoise.of(self._witness.logits[-1], self._witness.context.model.dtype)

    def _advance(self, number: int) -> None:
        """Let one reader read all new tokens that it has not read, as one block."""
        reader, begin = self._readers[number], self._read[number]
        reader.read(torch.cat(self._tokens[begin:]))
        self._read[number] = len(self._tokens)
        for position, logits in zip(self._positions[begin:], reader.logits, strict=True):
            position.add(logits)
        if number == 0:
            pairs = int(self._witness.head_cache.get_seq_length())
            found = gaps(reader.context, reader.head_cache, self._witness, pairs)
            self.states = {name: max(self.states[name], *found[name].values()) for name in COMPONENTS}


def pooled(positions: Sequence[PositionNoise]) -> float:
    """The quantile `POOLED` of the changes of all competitors in all readings at these positions [nat]."""
    changes = [change[1:].numpy() for position in positions for change in position.changes]  # the best's gap stays 0
    values = np.concatenate([np.empty(0), *changes])
    return float(np.quantile(values, POOLED)) if len(values) else 0.0
