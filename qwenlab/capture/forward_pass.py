"""Description of a forward pass from host-side facts alone: its shape, its cache and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwenlab.capture.generate_calls import NO_ENDS, RowEnds
from qwenlab.capture.read_columns import ReadColumns

Label = str | Sequence[str] | Sequence[Sequence[str]]
"""Names of tokens: one name for all, one per sequence, or one per token."""

Indices = int | list[list[int]]
"""Indices of labels: one for all tokens of a pass, or one per token."""


@dataclass(eq=False)
class CachedSequences:
    """The sequences of one cache, as read so far.

    begin     columns of the cache before the first pass that read these sequences
    columns   columns of the cache; a different number at the next pass means that it was cropped in between
    numbers   number of each sequence in reading order; `sequence` is the same as int [batch] on the tokens' device
    first     int [batch]: as in TokenBatch
    ended     bool [batch]: rows whose newest token ends a text in `generate`
    read      the tokens in the columns of the cache
    ends      how the rows end
    keys      of the layer that gives the cache its length, after the newest pass; None for one row
    carry     state that probes carry from call to call
    """

    begin: int
    columns: int
    numbers: range
    sequence: torch.Tensor
    first: torch.Tensor
    ended: torch.Tensor
    read: ReadColumns
    ends: RowEnds = NO_ENDS
    keys: torch.Tensor | None = None
    carry: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass. No tensor is read from the device, since a decode step has no time for that.

    batch, width  number of sequences, and columns of each
    past          columns of the cache before this pass
    ids           int [batch, position]: token ids, or None where only embeddings are known
    ends          how rows end in the `generate` call that runs this pass
    embeddings    [batch, position, channel], where ids are not known
    keys          [batch, past + position], nonzero for the real columns; None when all are
    label         indices of its labels
    sequences     the sequences that it reads
    """

    batch: int
    width: int
    past: int
    device: torch.device
    ids: torch.Tensor | None
    keys: torch.Tensor | None
    label: Indices
    sequences: CachedSequences
    ends: RowEnds
    embeddings: torch.Tensor | None = None

    @property
    def is_decode(self) -> bool:
        """Whether it reads one token per sequence, on a cache."""
        return self.width == 1 and self.past > 0

    def goes_on(self, earlier: ForwardPass) -> bool:
        """Whether this is the decode step right after an earlier pass, row by row."""
        return (
            self.is_decode
            and self.sequences is earlier.sequences
            and self.past == earlier.past + earlier.width
            and (self.keys is None, self.ids is None) == (earlier.keys is None, earlier.ids is None)
            and self.ends == earlier.ends
        )
