"""Texts as padded batches of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.checkpoint.open import require_checkpoint
from qwenlab.errors import BadArgument


@dataclass(frozen=True)
class Batch:
    """Tokens and mask [batch, position], padded on the right, and the indices of the texts they are of."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    texts: tuple[int, ...]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The keyword arguments of a model's forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def batches(
    checkpoint: Any, texts: Sequence[str], *, batch_size: int = 8, max_tokens: int | None = 512
) -> Iterator[Batch]:
    """The texts in order, `batch_size` at a time, cut after `max_tokens` tokens, on the model's device.

    Raises BadArgument for no texts, or a text of no tokens.
    """
    if not texts or isinstance(texts, str):
        raise BadArgument("batches(checkpoint, texts): give a list of at least one text, not a single string.")
    require_checkpoint(checkpoint)
    encoded = [checkpoint.tokenizer(text).input_ids[:max_tokens] for text in texts]
    empty = [index for index, ids in enumerate(encoded) if not ids]
    if empty:
        raise BadArgument(f"Texts {empty[:8]} have no tokens; leave them out.")
    device = checkpoint.model.device
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        width = max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        yield Batch(ids, mask, tuple(range(start, start + len(rows))))
