"""Feed texts to a model and discard its outputs, for a `watch` around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from qwenlab.capture.layer_major import run_layer_major
from qwenlab.checkpoint.caches import cached_by
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.streaming.stream import WeightStream, streamed_layers
from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import list_of_texts, whole
from qwenlab.tasks.encoding import padded


@torch.no_grad()
def feed(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_tokens: int | None = 512,
    decode: int = 0,
    progress: bool = False,
) -> None:
    """Run the model over texts, in their order, and discard its outputs: for a `watch` around it.

    batch_size  texts in one forward pass, padded on the right
    max_tokens  longer texts are cut after this number of tokens
    decode      the last tokens of the first text that are read one at a time, as in decoding. That text is then a batch
                of its own, and the model still reads each token once

    A checkpoint opened with `memory=` is read once for all texts: they go through each layer together, without caches
    and without the lm_head. Hidden states that do not fit into its budget wait in temporary files.

    Raises BadArgument for a list without texts, a text without tokens, and `decode` with a checkpoint opened with
    `memory=`.
    """
    whole("feed", least=0, decode=decode)
    whole("feed", batch_size=batch_size)
    require_checkpoint(checkpoint)
    rows = [checkpoint.tokenizer(text).input_ids[:max_tokens] for text in list_of_texts("feed", texts)]
    if empty := [index for index, row in enumerate(rows) if not row]:
        raise BadArgument(f"feed: texts {empty[:8]} have no tokens.\nLeave them out.")
    model: Any = checkpoint.model
    starts = range(1 if decode else 0, len(rows), batch_size)
    batches = (padded(rows[start : start + batch_size], model.device) for start in starts)
    if (stream := streamed_layers(model)) is not None:
        _feed_layer_major(decoder_of(model), stream, decode, batches, progress)
        return
    with tqdm(total=len(rows), desc="reading", unit="text", disable=not progress) as bar:
        if decode:
            _prefill_then_decode(model, torch.tensor(rows[:1], device=model.device), decode)
            bar.update()
        for ids, mask in batches:
            model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
            bar.update(len(ids))


def _feed_layer_major(
    decoder: Decoder,
    stream: WeightStream,
    decode: int,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    progress: bool,
) -> None:
    """Run all batches through each layer while it is in memory."""
    if decode:
        raise BadArgument(
            f"feed(decode={decode}): a checkpoint opened with memory=... would be read anew for each of these tokens."
            "\nLeave decode out, or open the checkpoint without memory=..."
        )
    calls = [partial(decoder.module, input_ids=ids, attention_mask=mask, use_cache=False) for ids, mask in batches]
    for _ in run_layer_major(decoder, calls, layers=stream.present, memory=stream.spare, progress=progress):
        pass


def _prefill_then_decode(model: Any, tokens: torch.Tensor, decode: int) -> None:
    """Read all tokens [1, position] but the last `decode` in one pass, and these one by one."""
    first = max(1, tokens.shape[1] - decode)
    cached = cached_by(model)
    model(tokens[:, :first], use_cache=True, logits_to_keep=1, **cached)
    for step in range(first, tokens.shape[1]):
        model(tokens[:, step : step + 1], use_cache=True, **cached)
