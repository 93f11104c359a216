"""Run a model over texts for nothing but what is seen meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from qwenlab.checkpoint.caches import cached_by
from qwenlab.errors import BadArgument
from qwenlab.tasks.batching import batches


@torch.no_grad()
def read(
    checkpoint: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_tokens: int | None = 512,
    decode: int = 0,
    progress: bool = False,
) -> None:
    """Let the model read texts, and keep nothing: for a `watch` around it.

    batch_size  texts read at a time;  max_tokens  read of each text
    decode      how many of the last tokens of the first text are read one at a time, as when decoding. They are the
                text's own, and that text is read by itself, so each token is still read once.
    """
    if decode < 0:
        raise BadArgument(f"read(decode={decode}): give 0 or more.")
    alone, together = (texts[:1], texts[1:]) if decode else (texts[:0], texts)
    steps = tqdm(total=len(texts), desc="reading", unit="text", disable=not progress)
    for batch in batches(checkpoint, alone, max_tokens=max_tokens) if alone else ():
        _prefill_then_decode(checkpoint.model, batch.input_ids, decode)
        steps.update(len(batch.texts))
    for batch in batches(checkpoint, together, batch_size=batch_size, max_tokens=max_tokens) if together else ():
        checkpoint.model(**batch.inputs, use_cache=True, logits_to_keep=1)
        steps.update(len(batch.texts))
    steps.close()


def _prefill_then_decode(model: Any, tokens: torch.Tensor, decode: int) -> None:
    """Read tokens [1, position] in one pass but for the last `decode`, which follow one by one."""
    first = max(1, tokens.shape[1] - decode)
    cached = cached_by(model)
    model(tokens[:, :first], use_cache=True, logits_to_keep=1, **cached)
    for step in range(first, tokens.shape[1]):
        model(tokens[:, step : step + 1], use_cache=True, **cached)
