"""The multi-token-prediction (MTP) head: one attention layer that drafts the token after the next."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from qwenlab.checkpoint.caches import cache_argument
from qwenlab.checkpoint.families import family_of
from qwenlab.errors import UnsupportedFamily


class MtpHead(nn.Module):
    """Draft head: predicts x[p+2] from the target model's hidden state h[p] and the token x[p+1].

    With E the embedding of the target model and RMS1p the zero-centred norm of the family (scale 1 + w),

        u[p] = fc( concat( RMS1p(E[x[p+1]]), RMS1p(h[p]) ) )       embedding first, hidden second
        y[p] = RMS1p( DecoderLayer(u)[p] )                          full attention, gated, as in the target model
        logits = lm_head(y[p])                                      the target model's lm_head

    where h[p] is the target model's hidden state *after* its final norm: the input of `lm_head`, the last entry of
    transformers' `hidden_states`. Deeper drafts reuse the head: the draft is the token, `y` the hidden state.
    Source: vLLM `qwen3_5_mtp.py`, SGLang `qwen3_5_mtp.py`, llama.cpp PR 24025.

    The module owns only the `mtp.*` tensors; embedding, lm_head and rotary tables belong to `target_model`.
    """

    def __init__(self, target_model: PreTrainedModel) -> None:
        super().__init__()
        decoder = target_model.get_decoder()
        if (family := family_of(decoder.config)).mtp_prefix is None:
            raise UnsupportedFamily(f"{family.name} has no MTP head.\nUse a model of a family that has one.")
        config = copy.deepcopy(decoder.config)
        config.layer_types = ["full_attention"]
        config.num_hidden_layers = 1
        size, eps = config.hidden_size, config.rms_norm_eps
        layer_class, norm_class = type(decoder.layers[0]), type(decoder.norm)

        self.fc = nn.Linear(2 * size, size, bias=False)
        self.pre_fc_norm_embedding = norm_class(size, eps=eps)
        self.pre_fc_norm_hidden = norm_class(size, eps=eps)
        self.layers = nn.ModuleList([layer_class(config, 0)])
        self.norm = norm_class(size, eps=eps)
        self.config = config
        # A plain tuple keeps the target model out of this module's parameters and state dict.
        self._target_model = (target_model,)

    @property
    def target_model(self) -> PreTrainedModel:
        """The target model, whose embedding, rotary tables and lm_head this head uses."""
        return self._target_model[0]

    def forward(
        self,
        tokens: torch.Tensor,
        hidden: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Run the head on pairs of a token and the hidden state of the previous position.

        tokens          int [batch, pair]           x[p+1]
        hidden          float [batch, pair, channel]  h[p], after the final norm of the target model; or the last y
        attention_mask  [batch, past + pair], 1 for real pairs, 0 for padding
        position_ids    int [batch, pair]; by default the pairs are numbered from the length of the cache
        past_key_values the head's own cache, never that of the target model
        returns         float [batch, pair, channel], y: pass it to `logits`, or back as `hidden`
        """
        decoder = self.target_model.get_decoder()
        embedded = self.target_model.get_input_embeddings()(tokens).to(hidden.device)
        u = self.fc(torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], dim=-1))
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + u.shape[1], device=u.device).expand(u.shape[0], -1)
        cached: dict[str, Any] = {cache_argument(create_causal_mask): past_key_values}
        mask = create_causal_mask(
            config=self.config, inputs_embeds=u, attention_mask=attention_mask, position_ids=position_ids, **cached
        )
        # Sectioned rotary tables take one row each for time, height and width; in text the three are equal.
        sectioned = hasattr(decoder.rotary_emb, "mrope_section")
        positions = position_ids[None].expand(3, -1, -1) if sectioned else position_ids
        s = self.layers[0](
            u,
            position_embeddings=decoder.rotary_emb(u, positions),
            attention_mask=mask,
            position_ids=position_ids,
            **{cache_argument(type(self.layers[0]).forward): past_key_values},
        )
        return self.norm(s)

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        """Next-token logits [batch, pair, vocabulary] of `y`, from the target model's lm_head."""
        return self.target_model.get_output_embeddings()(y)
