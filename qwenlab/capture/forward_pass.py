"""A forward pass as the host knows it: how wide, on what cache, under which labels; no tensor is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwenlab.capture.generate_calls import NO_ENDS, RowEnds

Label = str | Sequence[str] | Sequence[Sequence[str]]
"""What tokens are called: one name, one a sequence, or one a token."""

Indices = int | list[list[int]]
"""The same as indices of labels: one for all tokens of a pass, or one a token."""


@dataclass(eq=False)
class CachedSequences:
    """The sequences of one cache, as far as they were read.

    columns   of the cache; when it holds another number the next time, it was cropped in between
    numbers   number of each sequence in reading order; `sequence` is the same, int [batch], where the tokens are
    first     int [batch]: as in Reading
    ended     bool [batch]: rows whose newest token ends a text in `generate`;  ends: how they do
    """

    columns: int
    numbers: range
    sequence: torch.Tensor
    first: torch.Tensor
    ended: torch.Tensor
    ends: RowEnds = NO_ENDS
    carry: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass as the host knows it, no tensor looked at: a decode step has no time for more.

    batch, width  sequences side by side, and columns of each
    past          columns that the cache held before
    tokens        int [batch, position], or None where only embeddings are known
    ends          how rows of the `generate` that runs it end
    embeddings    [batch, position, channel], where tokens are not known
    keys          [batch, past + position], nonzero for the real columns; None when all are
    label         indices of its labels
    thread        the sequences it reads
    """

    batch: int
    width: int
    past: int
    device: torch.device
    tokens: torch.Tensor | None
    keys: torch.Tensor | None
    label: Indices
    thread: CachedSequences
    ends: RowEnds
    embeddings: torch.Tensor | None = None

    @property
    def is_decode(self) -> bool:
        """Whether it is one token a sequence, on a cache."""
        return self.width == 1 and self.past > 0

    def goes_on(self, earlier: ForwardPass) -> bool:
        """Whether this is the decode step right after an earlier one, row by row."""
        return (
            self.is_decode
            and self.thread is earlier.thread
            and self.past == earlier.past + earlier.width
            and (self.keys is None, self.tokens is None) == (earlier.keys is None, earlier.tokens is None)
            and self.ends == earlier.ends
        )
