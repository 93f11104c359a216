"""Interventions on softmax attention: hide keys from queries."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from qwenlab.capture.active import mark_mask
from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.tokens import TokenBatch, key_positions
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.base import HeadIntervention, head_mask
from qwenlab.interventions.points import InterventionPoints

MASKED = ("sdpa", "eager")
"""Attention implementations that take a mask [query, key]."""


@dataclass(frozen=True)
class _HiddenKeys(HeadIntervention):
    """Base class: hide keys from queries; the softmax distributes their probability over the keys that remain."""

    mixer: ClassVar[str] = ATTENTION

    def place(self, points: InterventionPoints) -> None:
        layers, implementation = self.layers_in(points.decoder), str(points.decoder.module.config._attn_implementation)
        change = self._mask if implementation in MASKED else self.without_mask(implementation)
        for layer in layers:
            points.attention(layer, f"layers.{layer}.mixer, its attention function", change)

    def without_mask(self, implementation: str) -> Any:
        """The change for an implementation that takes no mask. Raises CannotIntervene where there is none."""
        raise CannotIntervene(
            f"{self}: the attention implementation {implementation!r} takes no mask per query and key.\n"
            'Choose one that does: model.set_attn_implementation("sdpa").'
        )

    @abstractmethod
    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """bool: whether to hide keys from queries, by their positions; the first key, if any."""

    def affects(self, tokens: TokenBatch) -> bool:
        """Whether any of these tokens has a key to hide."""
        first = tokens.position.new_zeros(())
        return tokens.once((self, "affects"), lambda: bool((tokens.real & self.hidden(tokens.position, first)).any()))

    def _mask(self, call: AttentionCall, tokens: TokenBatch) -> AttentionCall | None:
        if not self.affects(tokens):
            return None
        columns = call.key.shape[2]
        hidden = tokens.once((self, columns), partial(self._columns, tokens, columns))
        if self.heads is not None:
            hidden = hidden & head_mask(self.heads, call.query.shape[1], call.device)[:, None, None]
        if call.mask is None:
            mask = tokens.once((_causal, columns), partial(_causal, tokens, columns)) & ~hidden
        elif call.mask.dtype == torch.bool:
            mask = call.mask & ~hidden
        else:
            mask = call.mask.masked_fill(hidden, torch.finfo(call.mask.dtype).min)
        mark_mask(mask)
        return replace(call, mask=mask)

    def _columns(self, tokens: TokenBatch, columns: int) -> torch.Tensor:
        """bool [batch, 1, query, column]"""
        key = key_positions(tokens, columns)
        hidden = self.hidden(tokens.position[:, :, None], key[:, None, :])
        return (hidden & (key >= 0)[:, None, :] & tokens.real[:, :, None])[:, None]


@dataclass(frozen=True)
class Window(_HiddenKeys):
    """Sliding-window attention: a query sees its own token and the `tokens` - 1 before it in its sequence.

    Site: the mask of the attention function. Cache: it still stores the keys and values of all tokens; those outside
    the window are hidden, and no memory is saved.

    tokens         the width of the window, 1 or more
    layers, heads  only these; heads are those of the queries

    A flash-attention implementation gets it as its sliding window, which all heads share.
    """

    tokens: int = field(metadata={"least": 1, "unit": "tokens"})

    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query - key >= self.tokens

    def without_mask(self, implementation: str) -> Any:
        if implementation.startswith("flash_attention") and self.heads is None:
            return lambda call, tokens: replace(call, window=self.tokens) if self.affects(tokens) else None
        return super().without_mask(implementation)


@dataclass(frozen=True)
class NoSink(_HiddenKeys):
    """Attention without its sink: only the first token of a sequence sees the first token.

    Site: the mask of the attention function. Cache: it still stores the first token's key and value.

    layers, heads  only these; heads are those of the queries

    The sink: Xiao et al. 2023 (arXiv:2309.17453).
    """

    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key == 0) & (query > 0)


def _causal(tokens: TokenBatch, columns: int) -> torch.Tensor:
    """bool [1, 1, query, column]: the columns up to that of each query."""
    query = tokens.past + torch.arange(tokens.width, device=tokens.position.device)
    return (torch.arange(columns, device=query.device) <= query[:, None])[None, None]
