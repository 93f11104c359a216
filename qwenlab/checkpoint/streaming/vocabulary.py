"""The two matrices of the vocabulary: the embedding, read by row, and the lm_head, read in slices of rows."""

from __future__ import annotations

from threading import Event

import torch
from torch.nn import functional

from qwenlab.checkpoint.streaming.stream import WeightStream
from qwenlab.checkpoint.streaming.unit import Unit


class EmbeddingRows:
    """Looks up token embeddings in the file; each row that a pass uses is read once.

    unit  the whole table, to notice changes
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Embeddings [*input, channel] of token ids."""
        self._unit.require_unchanged()
        ids, inverse = torch.unique(input, return_inverse=True)
        (table,) = self._unit.tensors
        rows = range(table.shape[0])
        if outside := [row for row in ids.tolist() if row not in rows]:
            raise IndexError(f"token {outside[0]} is not in the embedding of {len(rows):,} rows")
        read = [table.rows(row, row + 1).copied(Event()) for row in ids.tolist()]
        return torch.cat(read or [torch.empty(0, table.shape[1], dtype=table.dtype)])[inverse]


class SlicedHead:
    """Computes logits by slices of the lm_head; each logit is the same product as in the whole matrix.

    unit  the whole matrix, to notice changes
    """

    def __init__(self, stream: WeightStream, unit: Unit) -> None:
        self._stream, self._unit = stream, unit

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Logits [*, vocabulary] of hidden states [*, channel]."""
        self._unit.require_unchanged()
        slices = self._stream.head
        input = input.contiguous()  # else torch multiplies row by row, with a copy of the weights for each
        if len(slices) == 1:
            with self._stream.holding(slices[0]):
                return functional.linear(input, slices[0].values[0])
        (whole,) = self._unit.tensors
        logits, at = input.new_empty(*input.shape[:-1], whole.shape[0]), 0
        for unit, following in zip(slices, (*slices[1:], None), strict=True):
            with self._stream.holding(unit, following):
                (weight,) = unit.values
                logits[..., at : at + len(weight)] = functional.linear(input, weight)
                at += len(weight)
        return logits
