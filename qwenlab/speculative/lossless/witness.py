"""A text read without drafts beside one that was decoded with them: what both caches hold, and how far apart it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import NonFiniteWeights
from qwenlab.speculative.context import TargetContext

COMPONENTS = ("position", "recurrent", "convolution", "keys and values", "head cache")
"""Of what a cache is made, in the order in which a fault in one reaches the next."""


class PlainReading:
    """Trunk and head reading a text in blocks of one width, one after another, with nothing ever rolled back.

    context  what the trunk has read;  head_cache: the pairs that the head has
    logits   float [token, vocabulary], of the newest block; of the prompt, the last token's alone
    """

    def __init__(self, head: MtpHead, prompt: torch.Tensor) -> None:
        self.head, self.context = head, TargetContext(head.trunk)
        self.head_cache: Cache = DynamicCache(config=head.config)
        self._hidden: torch.Tensor | None = None
        self.logits = self._logits(self._states(prompt)[-1:])  # those of a long prompt would fill the memory

    def read(self, block: torch.Tensor) -> None:
        """Read a block; the head gets the pairs of its tokens with the hidden states before them."""
        self.logits = self._logits(self._states(block))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states. Raises NonFiniteWeights for NaN."""
        logits = self.context.logits(hidden)
        if logits.isnan().any():
            raise NonFiniteWeights(
                f"Plain decoding of {type(self.context.model).__name__} gives logits that are NaN, so there is nothing "
                "to compare drafted decoding with.\nLook for NaN in its weights: ql.open(..., strict=True)."
            )
        return logits

    def _states(self, block: torch.Tensor) -> torch.Tensor:
        """Let trunk and head read a block; returns the trunk's hidden states, float [token, channel]."""
        hidden = self.context.read(block)
        before = hidden[:-1] if self._hidden is None else torch.cat([self._hidden, hidden[:-1]])
        tokens = block[1:] if self._hidden is None else block
        if len(tokens):
            self.head(tokens[None], before[None], past_key_values=self.head_cache)
        self._hidden = hidden[-1:]
        return hidden


def gaps(context: TargetContext, head_cache: Cache, witness: PlainReading, pairs: int) -> dict[str, dict[int, float]]:
    """How far the state of a decoded text is from its witness's: by component, the relative error of each layer.

    The error of a layer is ||a - b|| / ||b||, of keys and values the largest over tokens. Infinite where one holds
    another number of tokens than the other, which `held` tells apart.

    pairs  how many pairs the head's cache should hold
    """
    other, decoder = witness.context, context.decoder
    deltanet, attention = decoder.layers_of(DELTANET), decoder.layers_of(ATTENTION)
    ours: Any = head_cache.layers[0]
    theirs: Any = witness.head_cache.layers[0]
    return {
        "position": {0: 0.0 if context.position == other.position else float("inf")},
        "recurrent": dict(zip(deltanet, map(_gap, context.recurrent, other.recurrent), strict=True)),
        "convolution": dict(zip(deltanet, map(_gap, context.convolution, other.convolution), strict=True)),
        "keys and values": {
            layer: _token_gap(a, b, other.position)
            for layer, a, b in zip(attention, context.attention, other.attention, strict=True)
        },
        "head cache": {0: _token_gap(ours, theirs, pairs) if pairs else 0.0},
    }


def held(context: TargetContext, head_cache: Cache, witness: PlainReading, pairs: int) -> dict[str, int]:
    """By how many tokens too many (or, below 0, too few) each component that can be counted holds."""
    read = witness.context.position
    return {
        "position": context.position - read,
        "keys and values": max((layer.get_seq_length() for layer in context.attention), default=read) - read,
        "head cache": head_cache.get_seq_length() - pairs,
    }


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30))


def _token_gap(a: Any, b: Any, columns: int) -> float:
    """The largest error of one token's keys, or values."""
    if a.get_seq_length() != columns:
        return float("inf")
    worst = 0.0
    for one, other in ((a.keys, b.keys), (a.values, b.values)):
        one, other = one.double(), other[..., :columns, :].double()
        error = torch.linalg.vector_norm(one - other, dim=(0, 1, 3))
        size = torch.linalg.vector_norm(other, dim=(0, 1, 3)).clamp_min(1e-30)
        worst = float(np.maximum(worst, float((error / size).max())))  # NaN stays
    return worst
