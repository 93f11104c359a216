"""Measure the rounding noise of reading a text in blocks: of states, and of the logits of competing tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwenlab.speculative.lossless.reference import COMPONENTS, ReferenceReader, state_errors

COMPETING = 1.0
"""A token competes at a position if its log-probability under the reference is at most this below the best [nat]."""

COMPETITORS = 64
"""Maximum number of tokens compared at a position: the likeliest."""

POOLED = 0.99
"""Quantile of the changes over all positions; the noise of every position is at least this."""


@dataclass
class PositionNoise:
    """Changes, caused by reading in blocks, of the logits of the tokens that compete at one position.

    tokens   int [competitor], the reference's best first
    gaps     float [competitor]: the reference's logit of the best minus the competitor's [nat]
    step     distance of two neighbouring logits of this size in the model's dtype [nat]
    changes  one per reading in blocks, float [competitor]: absolute change of the gap [nat]
    """

    tokens: torch.Tensor
    gaps: torch.Tensor
    step: float
    changes: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, logits: torch.Tensor, dtype: torch.dtype) -> PositionNoise:
        """The competitors under the reference's logits, float [vocabulary], of a model of this dtype."""
        top = logits.topk(min(COMPETITORS, len(logits)))
        gaps = top.values[0] - top.values
        competing = gaps <= COMPETING
        exponent = math.frexp(float(top.values[0]))[1]
        return cls(top.indices[competing], gaps[competing], math.ldexp(torch.finfo(dtype).eps, exponent - 1))

    def add(self, logits: torch.Tensor) -> None:
        """Add the logits, float [vocabulary], of one reading in blocks."""
        chosen = logits[self.tokens]
        self.changes.append((chosen[0] - chosen - self.gaps).abs().cpu())

    @property
    def largest(self) -> float:
        """The largest change in any reading [nat]; 0 if no token competes with the best."""
        return max((float(change.max()) for change in self.changes), default=0.0)


class BlockReaders:
    """Read a reference's text in blocks of `width` tokens, without rollback.

    There are `width` readers, and each starts its blocks at another token. So every position takes every place in a
    block, as it may in a round of drafts.

    states  by component, the largest error of the first reader's states relative to the reference
    newest  noise of the position that the reference predicts now; complete after `finish`
    """

    def __init__(self, reference: ReferenceReader, prompt: torch.Tensor, width: int) -> None:
        self.states = dict.fromkeys(COMPONENTS, 0.0)
        self._reference, self._width = reference, width
        self._readers = [ReferenceReader(reference.head, prompt) for _ in range(width)]
        self._tokens: list[torch.Tensor] = []
        self._positions: list[PositionNoise] = []
        self._read = [0] * width  # new tokens read, per reader
        self.newest = self._new_position()

    def follow(self, token: torch.Tensor) -> None:
        """Add the token, int [1], that the reference has just read."""
        self._tokens.append(token)
        self.newest = self._new_position()
        self._positions.append(self.newest)
        self._advance(len(self._tokens) % self._width)

    def finish(self) -> None:
        """Read the incomplete blocks at the end of the text."""
        for number, read in enumerate(self._read):
            if read < len(self._tokens):
                self._advance(number)

    def _new_position(self) -> PositionNoise:
        return PositionNoise.of(self._reference.logits[-1], self._reference.context.model.dtype)

    def _advance(self, number: int) -> None:
        """Let one reader read its unread tokens as one block."""
        reader, begin = self._readers[number], self._read[number]
        reader.read(torch.cat(self._tokens[begin:]))
        self._read[number] = len(self._tokens)
        for position, logits in zip(self._positions[begin:], reader.logits, strict=True):
            position.add(logits)
        if number == 0:
            pairs = int(self._reference.head_cache.get_seq_length())
            errors = state_errors(reader.context, reader.head_cache, self._reference, pairs)
            self.states = {name: max(self.states[name], *errors[name].values()) for name in COMPONENTS}


def pooled(positions: Sequence[PositionNoise]) -> float:
    """The quantile `POOLED` of the changes of all competitors in all readings at these positions [nat]."""
    # The first change is that of the best's own gap, which is 0.
    changes = [change[1:].numpy() for position in positions for change in position.changes]
    values = np.concatenate([np.empty(0), *changes])
    return float(np.quantile(values, POOLED)) if len(values) else 0.0
