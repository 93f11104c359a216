"""Reference for `check_lossless`: read a text without drafts, and compare its cache states with a decoded text's."""

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
"""Components of the state, in the order in which a fault spreads from one to the next."""


class ReferenceReader:
    """Target model and head that read a text block by block, without drafts and without rollback.

    context  the target model's state;  head_cache: the head's cache of pairs
    logits   float [token, vocabulary] of the newest block; after the prompt, of its last token only
    """

    def __init__(self, head: MtpHead, prompt: torch.Tensor) -> None:
        self.head, self.context = head, TargetContext(head.target_model)
        self.head_cache: Cache = DynamicCache(config=head.config)
        self._hidden: torch.Tensor | None = None
        self.read(prompt, last=True)  # logits of all tokens of a long prompt would exceed memory

    def read(self, block: torch.Tensor, *, last: bool = False) -> None:
        """Read a block; the head reads the pairs of its tokens with the hidden states before them.

        last  compute the logits of the last token only

        Raises NonFiniteWeights for logits that are NaN.
        """
        hidden = self.context.read(block)
        before = hidden[:-1] if self._hidden is None else torch.cat([self._hidden, hidden[:-1]])
        tokens = block[1:] if self._hidden is None else block
        if len(tokens):
            self.head(tokens[None], before[None], past_key_values=self.head_cache)
        self._hidden = hidden[-1:]
        self.logits = self.context.logits(hidden[-1:] if last else hidden)
        if self.logits.isnan().any():
            raise NonFiniteWeights(
                f"Plain decoding of {type(self.context.model).__name__} gives logits that are NaN, so speculative "
                "decoding cannot be compared with it.\nCheck its weights for NaN: ql.open(..., strict=True)."
            )


def state_errors(
    context: TargetContext, head_cache: Cache, reference: ReferenceReader, pairs: int
) -> dict[str, dict[int, float]]:
    """Relative error of a decoded text's state compared with its reference, by component and layer.

    The error of a layer is ||a - b|| / ||b||; for keys and values it is the largest over tokens. It is infinite if the
    caches have different numbers of tokens: see `excess_tokens`.

    pairs  number of pairs that the head's cache should have
    """
    other, decoder = reference.context, context.decoder
    deltanet, attention = decoder.layers_of(DELTANET), decoder.layers_of(ATTENTION)
    ours: Any = head_cache.layers[0]
    theirs: Any = reference.head_cache.layers[0]
    return {
        "position": {0: 0.0 if context.position == other.position else float("inf")},
        "recurrent": dict(zip(deltanet, map(_error, context.recurrent, other.recurrent), strict=True)),
        "convolution": dict(zip(deltanet, map(_error, context.convolution, other.convolution), strict=True)),
        "keys and values": {
            layer: _token_error(a, b, other.position)
            for layer, a, b in zip(attention, context.attention, other.attention, strict=True)
        },
        "head cache": {0: _token_error(ours, theirs, pairs) if pairs else 0.0},
    }


def excess_tokens(context: TargetContext, head_cache: Cache, reference: ReferenceReader, pairs: int) -> dict[str, int]:
    """Tokens in the cache minus tokens read, by component that can be counted; below 0: tokens are missing."""
    read = reference.context.position
    return {
        "position": context.position - read,
        "keys and values": max((layer.get_seq_length() for layer in context.attention), default=read) - read,
        "head cache": head_cache.get_seq_length() - pairs,
    }


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30))


def _token_error(a: Any, b: Any, columns: int) -> float:
    """The largest relative error of one token's keys or values."""
    if a.get_seq_length() != columns:
        return float("inf")
    worst = 0.0
    for one, other in ((a.keys, b.keys), (a.values, b.values)):
        one, other = one.double(), other[..., :columns, :].double()
        error = torch.linalg.vector_norm(one - other, dim=(0, 1, 3))
        size = torch.linalg.vector_norm(other, dim=(0, 1, 3)).clamp_min(1e-30)
        worst = float(np.maximum(worst, float((error / size).max())))  # NaN stays
    return worst
