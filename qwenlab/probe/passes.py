"""A forward pass as the host knows it: how wide, on what cache, under which labels; no tensor is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwenlab.errors import UnreadableMask

Label = str | Sequence[str] | Sequence[Sequence[str]]
"""What tokens are called: one name, one a sequence, or one a token."""

Indices = int | list[list[int]]
"""The same as indices of labels: one for all tokens of a pass, or one a token."""


@dataclass(eq=False)
class Thread:
    """The sequences of one cache, as far as they were read.

    columns   of the cache; when it holds another number the next time, it was cropped in between
    numbers   number of each sequence in reading order; `sequence` is the same, int [batch], where the tokens are
    first     int [batch]: as in Reading
    ended     bool [batch]: rows whose newest token ends a text in `generate`
    """

    columns: int
    numbers: range
    sequence: torch.Tensor
    first: torch.Tensor
    ended: torch.Tensor
    carry: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass as the host knows it, no tensor looked at: a decode step has no time for more.

    batch, width  sequences side by side, and columns of each
    past          columns that the cache held before
    tokens        int [batch, position], or None where embeddings were given
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
    thread: Thread

    @property
    def is_decode(self) -> bool:
        """Whether it is one token a sequence, on a cache."""
        return self.width == 1 and self.past > 0

    def goes_on(self, earlier: Pass) -> bool:
        """Whether this is the decode step right after an earlier one, row by row."""
        return (
            self.is_decode
            and self.thread is earlier.thread
            and self.past == earlier.past + earlier.width
            and (self.keys is None, self.tokens is None) == (earlier.keys is None, earlier.tokens is None)
        )


def keys_of(mask: Any, batch: int, columns: int) -> torch.Tensor | None:
    """[batch, column], nonzero for the real columns by this attention_mask; None where there is no padding."""
    if isinstance(mask, dict) and "full_attention" in mask:
        # `generate` makes masks beforehand for a static cache; in its batches the last query sees every real key.
        mask = mask["full_attention"]
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            mask = mask[:, 0, -1, :columns]
            mask = mask if mask.dtype == torch.bool else mask == 0  # eager adds its mask to the scores
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape != (batch, columns):
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UnreadableMask(
            f"The attention_mask is {shape}; "
            f"probes tell padding apart by one of [batch, past + position] = [{batch}, {columns}].\n"
            "Pass that mask (1 for real tokens, 0 for padding), or none for a batch without padding."
        )
    return mask


def refuse_packed(given: dict[str, Any]) -> None:
    """Refuse rows of several sequences: transformers is told of them, or sees positions jump without mask and cache."""
    positions = given.get("position_ids")
    told = given.get("cu_seq_lens_q") is not None
    if positions is not None and given.get("attention_mask") is None and given.get("past_key_values") is None:
        text = positions[0] if positions.ndim == 3 and positions.shape[0] == 4 else positions
        told = told or (text.ndim == 2 and bool((text.diff(dim=-1) != 1).any()))
    if told:
        raise UnreadableMask(
            "This forward pass packs several sequences into a row (cu_seq_lens_q, or position_ids that start again).\n"
            "Probes need one sequence a row: pass a padded batch with its attention_mask."
        )
