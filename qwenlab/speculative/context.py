"""What the trunk has read of one text: its cache, how many tokens, and the means to read on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from qwenlab.checkpoint.caches import cache_argument
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import CannotRollBack


class TargetContext:
    """One text, as far as the trunk has read it.

    cache     of transformers: two states a DeltaNet layer, growing keys and values an attention layer
    position  tokens read
    block     int [token]: the tokens of the newest read
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
        """Where tokens go in."""
        return device_of(self.model)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read these tokens, int [token], after what was read before.

        returns  float [token, channel]: hidden states after the final norm, the vectors that lm_head reads
        """
        self.block = tokens
        places = torch.arange(self.position, self.position + len(tokens), device=self.device)
        out = self.decoder.module(
            input_ids=tokens[None].to(self.device),
            position_ids=places[None],
            use_cache=True,
            **{cache_argument(type(self.decoder.module).forward): self.cache},
        )
        self.position += len(tokens)
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits [token, vocabulary] of hidden states, in float32 or better."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    @property
    def deltanet(self) -> list[Any]:
        """The caches of the DeltaNet layers, from the lowest."""
        return [layer for layer in self.cache.layers if isinstance(layer, LinearAttentionLayer)]

    @property
    def recurrent(self) -> list[torch.Tensor]:
        """Their recurrent states [batch, head, key channel, channel], as they lie in the cache: write into them."""
        return [layer.recurrent_states[0] for layer in self.deltanet]

    @property
    def convolution(self) -> list[torch.Tensor]:
        """Their convolution states [batch, channel, newest tokens], as they lie in the cache: write into them."""
        return [layer.conv_states[0] for layer in self.deltanet]

    @property
    def attention(self) -> list[DynamicLayer]:
        """The caches of the attention layers, from the lowest."""
        return [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]

    def crop_attention(self, tokens: int) -> None:
        """Let the attention layers forget their newest tokens, so many of them."""
        if tokens:
            for layer in self.attention:
                layer.crop(-tokens)


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model's tokens go in."""
    embedding: Any = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    return device


def _check_cache(cache: Cache, layers: int) -> None:
    """Refuse a cache that is of other parts than a state a DeltaNet layer and keys that grow, or that is in use."""
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) not in (LinearAttentionLayer, DynamicLayer)}
    if kinds or len(cache.layers) != layers:
        has = f"layers of the kinds {', '.join(sorted(kinds))}" if kinds else f"{len(cache.layers)} layers for {layers}"
        raise CannotRollBack(
            f"A {type(cache).__name__} with {has} cannot be rolled back exactly after a rejected draft.\n"
            "Leave the cache out, or give an empty transformers.DynamicCache(config=model.config)."
        )
    if cache.get_seq_length() > 0:
        raise CannotRollBack(
            f"This {type(cache).__name__} holds {cache.get_seq_length()} tokens already, of which the MTP head has not "
            "seen the hidden states.\nLeave the cache out, and give the whole text as the prompt."
        )
