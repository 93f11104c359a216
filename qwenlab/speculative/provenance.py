"""Provenance of what was decoded or traced: the model, its hash, precision, device and kernels, and what was read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwenlab.capture.provenance import facts_of_texts
from qwenlab.checkpoint.open import Checkpoint
from qwenlab.checkpoint.weights.fingerprint import fingerprint_in_memory


def facts_of(
    checkpoint: Checkpoint, texts: Iterable[Sequence[int]], *, labels: Mapping[str, int], seed: int | str = ""
) -> dict[str, Any]:
    """The root attrs of a recording: those of `facts_of_texts`, prompts being texts too, and which head drafted."""
    facts = facts_of_texts(checkpoint, texts, labels=labels, seed=seed)
    return {**facts, "mtp_head": fingerprint_in_memory(checkpoint.require_mtp())}
