"""Provenance of what was decoded or traced: the model, its hash, precision, device and kernels, and what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.open import Checkpoint
from qwenlab.probe.facts import fingerprint, running_on
from qwenlab.record.provenance import provenance


def facts_of(
    checkpoint: Checkpoint, texts: Iterable[Sequence[int]], *, labels: Mapping[str, int], seed: int | str = ""
) -> dict[str, Any]:
    """The root attrs of a recording.

    texts   the tokens of every text, prompts included: counted, and hashed together
    labels  tokens by label
    seed    of what was drawn at random; "" where nothing was
    """
    digest, tokens, sequences = hashlib.sha256(), 0, 0
    for text in texts:
        digest.update(repr(list(text)).encode())
        tokens, sequences = tokens + len(text), sequences + 1
    facts = provenance(
        checkpoint=checkpoint.facts.source,
        checkpoint_hash=checkpoint.facts.hash,
        **running_on(decoder_of(checkpoint.model)),
        tokens=tokens,
        sequences=sequences,
        labels=labels,
        prompts_hash=f"sha256:{digest.hexdigest()[:16]}",
        seed=seed,
    )
    return {**facts, "mtp_head": fingerprint(checkpoint.require_mtp())}
