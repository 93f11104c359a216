"""Gated linear attention: the gated delta rule without the removal of old values."""

from __future__ import annotations

import torch

from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import chunked, normalised


def gated_linear_attention(
    call: DeltaRuleCall, state: torch.Tensor | None, *, normalise: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = alpha_t S_(t-1) + beta_t k_t v_t^T,  o_t = S_t^T q_t / sqrt(key channels), in float32.

    Chunk by chunk: with G the cumulative sum of g within a chunk that starts from the state S0,

        o_t = exp(G_t) S0^T q_t + sum over s <= t of exp(G_t - G_s) (q_t . k_s) beta_s v_s

    (Yang et al. 2023, arXiv:2312.06635, section 4, with one decay per head).

    state      [batch, head, key channel, channel], the state before; None where it is empty
    normalise  divide queries and keys by their L2 norm, as the rule does

    returns  [batch, position, head, channel] in the queries' type; the state after, float32
    """
    heads, length = call.value.shape[2], call.value.shape[1]
    query, key = (
        (normalised(tensor) if normalise else tensor.float()).repeat_interleave(heads // tensor.shape[2], dim=2)
        for tensor in (call.query, call.key)
    )
    written = call.value.float() * call.beta.float()[..., None]
    query = query * query.shape[-1] ** -0.5
    query, key, written, g = (chunked(tensor) for tensor in (query, key, written, call.g.float()[..., None]))
    elapsed = g.cumsum(dim=3)  # [batch, head, chunk, position, 1]
    width = elapsed.shape[3]
    later = torch.ones(width, width, dtype=torch.bool, device=g.device).triu(1)
    decay = (elapsed - elapsed.transpose(3, 4)).masked_fill(later, -torch.inf).exp()
    within = (query @ key.transpose(3, 4) * decay) @ written
    end = elapsed[..., -1:, :]
    query, key, decayed = query * elapsed.exp(), (key * (end - elapsed).exp()).transpose(3, 4), end.exp()
    if state is None:
        state = written.new_zeros(*written.shape[:2], key.shape[3], written.shape[4])
    state = state.float()
    out = []
    for chunk in range(within.shape[2]):
        out.append(within[:, :, chunk] + query[:, :, chunk] @ state)
        state = decayed[:, :, chunk] * state + key[:, :, chunk] @ written[:, :, chunk]
    return torch.cat(out, dim=2)[:, :, :length].transpose(1, 2).to(call.query.dtype).contiguous(), state
