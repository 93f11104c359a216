"""Provenance of a recording: the model's hash, precision, device and kernels, and the tokens it read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from qwenlab.capture.active import active_interventions
from qwenlab.capture.delta_rule import kernel_of
from qwenlab.capture.sequences import SequenceTracker
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.open import Checkpoint
from qwenlab.checkpoint.weights.fingerprint import fingerprint_in_memory
from qwenlab.record.provenance import provenance


def facts_of(model: Any, decoder: Decoder, tracker: SequenceTracker, edits: Sequence[str]) -> dict[str, Any]:
    """Return the root attrs of a recording."""
    known = getattr(model, "facts", None)
    config: Any = decoder.module.config
    tokens = tracker.tokens
    return provenance(
        checkpoint=str(known.source)
        if known is not None
        else getattr(config, "_name_or_path", "") or type(model).__name__,
        checkpoint_hash=model.hash_now() if isinstance(model, Checkpoint) else fingerprint_in_memory(decoder.module),
        **running_on(decoder),
        tokens=sum(tokens.values()),
        sequences=tracker.sequences,
        labels=tokens,
        prompts_hash=tracker.prompts_hash,
        seed=torch.initial_seed(),
        edits=edits,
    )


def facts_of_texts(
    checkpoint: Checkpoint, texts: Iterable[Sequence[int]], *, labels: Mapping[str, int], seed: int | str = ""
) -> dict[str, Any]:
    """Return the root attrs of a result that was measured by reading texts outside `watch`.

    texts   the tokens of every text: counted, and hashed together
    labels  number of tokens by label
    seed    seed of random draws; "" if there were none
    """
    decoder, digest, tokens, sequences = decoder_of(checkpoint.model), hashlib.sha256(), 0, 0
    for text in texts:
        digest.update(repr(list(text)).encode())
        tokens, sequences = tokens + len(text), sequences + 1
    return provenance(
        checkpoint=checkpoint.facts.source,
        checkpoint_hash=checkpoint.hash_now(),
        **running_on(decoder),
        tokens=tokens,
        sequences=sequences,
        labels=labels,
        prompts_hash=f"sha256:{digest.hexdigest()[:16]}",
        seed=seed,
        edits=active_interventions(decoder.module),
    )


def running_on(decoder: Decoder) -> dict[str, Any]:
    """Return family, layer types, precision, device and kernels of a stack of layers."""
    parameters, config = list(decoder.module.parameters()), decoder.module.config
    return {
        "family": decoder.family.name,
        "layer_types": decoder.layer_types,
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        "device": ", ".join(sorted({_device(p.device) for p in parameters})),
        "kernel_delta_rule": kernel_of(decoder),
        "attention_implementation": str(config._attn_implementation),
        "experts_implementation": str(getattr(config, "_experts_implementation", None) or "none"),
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
