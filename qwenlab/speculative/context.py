"""The target model's state for one text: its cache, its position, and reading further tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from qwenlab.checkpoint.caches import cache_argument
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import CannotRollBack


class TargetContext:
    """The target model and its cache for one text.

    cache     of transformers: two states per DeltaNet layer, growing keys and values per attention layer
    position  tokens read
    block     int [token]: the tokens of the newest read

    Raises CannotRollBack for a cache that is in use or has other kinds of layers.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache | None = None) -> None:
        require_loaded(model)
        self.model = model
        self.decoder = decoder_of(model)
        self.cache: Cache = DynamicCache(config=self.decoder.module.config) if cache is None else cache
        self.position = 0
        self.block = torch.empty(0, dtype=torch.long)
        _check_cache(self.cache, len(self.decoder.layers))

    @property
    def device(self) -> torch.device:
        """Device of the input tokens."""
        return input_device(self.model)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read tokens, int [token], after those already read.

        returns  float [token, channel]: hidden states after the final norm, the vectors that lm_head reads
        """
        self.block = tokens
        positions = torch.arange(self.position, self.position + len(tokens), device=self.device)
        out = self.decoder.module(
            input_ids=tokens[None].to(self.device),
            position_ids=positions[None],
            use_cache=True,
            **{cache_argument(type(self.decoder.module).forward): self.cache},
        )
        self.position += len(tokens)
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def read_in_chunks(
        self, tokens: Sequence[int] | torch.Tensor, chunk: int, progress: Callable[[int], Any] = lambda _: None
    ) -> torch.Tensor:
        """`read` with `chunk` tokens per pass; calls `progress` with the number of tokens of each."""
        states = []
        for part in torch.as_tensor(tokens, device=self.device).split(chunk):
            states.append(self.read(part))
            progress(len(part))
        return torch.cat(states)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits [token, vocabulary] of hidden states, in float32 or better."""
        return at_least_float32(self.model.get_output_embeddings()(hidden))

    @property
    def deltanet(self) -> list[Any]:
        """The caches of the DeltaNet layers, lowest layer first."""
        return [layer for layer in self.cache.layers if isinstance(layer, LinearAttentionLayer)]

    @property
    def recurrent(self) -> list[torch.Tensor]:
        """The cache's own recurrent states [batch, head, key channel, channel], one per DeltaNet layer; writable."""
        return [layer.recurrent_states[0] for layer in self.deltanet]

    @property
    def convolution(self) -> list[torch.Tensor]:
        """The cache's own convolution states [batch, channel, newest tokens], one per DeltaNet layer; writable."""
        return [layer.conv_states[0] for layer in self.deltanet]

    @property
    def attention(self) -> list[DynamicLayer]:
        """The caches of the attention layers, lowest layer first."""
        return [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]

    def crop_attention(self, tokens: int) -> None:
        """Remove the newest `tokens` tokens from the caches of the attention layers."""
        if tokens:
            for layer in self.attention:
                layer.crop(-tokens)


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, or unchanged in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def input_device(model: PreTrainedModel) -> torch.device:
    """Device of a model's input tokens: that of its embedding."""
    embedding: Any = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    return device


def _check_cache(cache: Cache, layers: int) -> None:
    """Reject a cache that is in use or has other kinds of layers."""
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) not in (LinearAttentionLayer, DynamicLayer)}
    if kinds or len(cache.layers) != layers:
        has = f"layers of the kinds {', '.join(sorted(kinds))}" if kinds else f"{len(cache.layers)} layers for {layers}"
        raise CannotRollBack(
            f"A {type(cache).__name__} with {has} cannot be rolled back exactly after a rejected draft.\n"
            "Leave the cache out, or give an empty transformers.DynamicCache(config=model.config)."
        )
    if cache.get_seq_length() > 0:
        raise CannotRollBack(
            f"This {type(cache).__name__} holds {cache.get_seq_length()} tokens already, and the MTP head has not seen "
            "their hidden states.\nLeave the cache out, and give the whole text as the prompt."
        )
