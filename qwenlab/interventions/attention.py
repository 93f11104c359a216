"""Edits of what softmax-attention layers may look at."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from qwenlab.capture.tokens import TokenBatch, key_positions
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.call_arguments import AttentionArguments
from qwenlab.interventions.layers import HeadIntervention, whole_number
from qwenlab.interventions.module_sites import InterventionPoints

MASKED = ("sdpa", "eager")
"""Implementations that take a mask of every query and key."""


@dataclass(frozen=True)
class _Hiding(HeadIntervention):
    """Keys hidden from queries; the softmax shares their probability out among those that are left."""

    mixer: ClassVar[str] = ATTENTION

    def place(self, places: InterventionPoints) -> None:
        """At each attention function. Raises NothingToProbe, UnknownLayer, BadArgument and CannotIntervene."""
        layers, implementation = self.chosen(places), str(places.decoder.module.config._attn_implementation)
        change = self._hidden if implementation in MASKED else self.otherwise(implementation)
        for layer in layers:
            places.attention(layer, f"layers.{layer}.mixer, its attention function", change)

    def otherwise(self, implementation: str) -> Any:
        """The change for an implementation that takes no such mask. Raises CannotIntervene where there is none."""
        raise CannotIntervene(
            f"{self}: the attention implementation {implementation!r} takes no mask of single queries and keys.\n"
            'Choose one that does: model.set_attn_implementation("sdpa").'
        )

    @abstractmethod
    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """bool [batch, query, key]: keys not to be seen, by the positions [batch, query, 1] and [batch, 1, key]."""

    @abstractmethod
    def acts(self, position: torch.Tensor) -> torch.Tensor:
        """bool: queries at these positions that have a key to be hidden."""

    def some(self, reading: TokenBatch) -> bool:
        """Whether it changes anything of what is read."""
        return reading.once((self, "acts"), lambda: bool((reading.real & self.acts(reading.position)).any()))

    def _hidden(self, call: AttentionArguments, reading: TokenBatch) -> AttentionArguments | None:
        if not self.some(reading):
            return None
        columns = call.key.shape[2]
        hidden = reading.once((self, columns), partial(self._columns, reading, columns))
        if self.heads is not None:
            hidden = hidden & self.these(call.query.shape[1], call.at)[:, None, None]
        if call.mask is None:
            mask = reading.once((_causal, columns), partial(_causal, reading, columns)) & ~hidden
        elif call.mask.dtype == torch.bool:
            mask = call.mask & ~hidden
        else:
            mask = call.mask.masked_fill(hidden, torch.finfo(call.mask.dtype).min)
        return call.but(attention_mask=mask)

    def _columns(self, reading: TokenBatch, columns: int) -> torch.Tensor:
        """bool [batch, 1, query, column]"""
        key = key_positions(reading, columns)
        hidden = self.hidden(reading.position[:, :, None], key[:, None, :])
        return (hidden & (key >= 0)[:, None, :] & reading.real[:, :, None])[:, None]


@dataclass(frozen=True)
class Window(_Hiding):
    """Attention that sees a query's own token and the `tokens` - 1 before it in its sequence, and none further back.

    Site: the mask of the attention function. Cache: the keys and values of all tokens are kept, and hidden when they
    are further back: nothing is saved.

    tokens         how many, 1 or more
    layers, heads  only these; heads are those of the queries

    A flash-attention implementation is told of it as its sliding window, which all heads share.
    """

    tokens: int

    def __post_init__(self) -> None:
        """Raises BadArgument for a number of tokens that is none."""
        super().__post_init__()
        whole_number(self.tokens, 1, "Window(tokens)")

    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Those further back."""
        return query - key >= self.tokens

    def acts(self, position: torch.Tensor) -> torch.Tensor:
        """From the first query on that has so many tokens before it."""
        return position >= self.tokens

    def otherwise(self, implementation: str) -> Any:
        """A sliding window for flash attention."""
        if implementation.startswith("flash_attention") and self.heads is None:
            return self._sliding
        return super().otherwise(implementation)

    def _sliding(self, call: AttentionArguments, reading: TokenBatch) -> AttentionArguments | None:
        return call.but(sliding_window=self.tokens) if self.some(reading) else None


@dataclass(frozen=True)
class NoSink(_Hiding):
    """Attention without its sink: no query but the first token's own sees the first token of its sequence.

    Site: the mask of the attention function. Cache: the first token's key and value are kept, and hidden.

    layers, heads  only these; heads are those of the queries

    The sink: Xiao et al. 2023 (arXiv:2309.17453).
    """

    def hidden(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The first."""
        return (key == 0) & (query > 0)

    def acts(self, position: torch.Tensor) -> torch.Tensor:
        """From the second token on."""
        return position > 0


def _causal(reading: TokenBatch, columns: int) -> torch.Tensor:
    """bool [1, 1, query, column]: columns up to each query's own."""
    query = reading.past + torch.arange(reading.width, device=reading.position.device)
    return (torch.arange(columns, device=query.device) <= query[:, None])[None, None]
