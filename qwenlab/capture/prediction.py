"""Recompute from the kernel's arguments what the state of a DeltaNet head predicts before each token is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

CHUNK = 64
"""Number of tokens whose predictions are solved for at once."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that are solved for at once; the padding of the last chunk has beta 0 and alpha 1.

    key              [batch * head, position, key channel], normalised
    predicted        [batch * head, position, channel]: S^T k, S decayed and not yet written to
    written          [batch * head, position, channel]: beta (v - S^T k): a token does S <- alpha S + k written^T
    g, elapsed       [batch * head, position, 1]: ln alpha, and its sum from the chunk's first token on
    before, after    [batch * head, key channel, channel]: initial and final state of the chunk
    """

    key: torch.Tensor
    predicted: torch.Tensor
    written: torch.Tensor
    g: torch.Tensor
    elapsed: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


def normalised(key: torch.Tensor) -> torch.Tensor:
    """Return keys [..., channel] in float32, of length 1, normalised as in the kernels (eps 1e-6 under the root)."""
    key = key.float()
    return key * torch.rsqrt(torch.linalg.vecdot(key, key) + 1e-6)[..., None]


def predictions(
    key: torch.Tensor, value: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return S^T k of every token, S decayed and not yet written to, and the state after the last one; float32.

    The arguments are those of `chunks`.
    returns  [batch, position, head, channel] and [batch, head, key channel, channel]
    """
    parts = []
    for chunk in chunks(key, value, g, beta, state):
        parts.append(chunk.predicted)
    shape = (key.shape[0], key.shape[2])
    predicted = torch.cat(parts, dim=1)[:, : key.shape[1]].unflatten(0, shape).transpose(1, 2)
    return predicted, chunk.after.unflatten(0, shape)


def chunks(
    key: torch.Tensor, value: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor | None
) -> Iterator[Chunk]:
    """Iterate over the tokens in order, up to 64 at a time, with the states between them; float32.

    key    [batch, position, head, key channel], normalised;  value [batch, position, head, channel]
    g, beta  [batch, position, head]: ln of the decay, write strength
    state  [batch, head, key channel, channel], the state before; None where it is empty

    Within a chunk that begins with the state S0, and with G the running sum of g, the prediction for token t is

        p_t = exp(G_t) S0^T k_t + sum over s < t of exp(G_t - G_s) (k_t . k_s) beta_s (v_s - p_s)

    a unit lower triangular system for all p of the chunk, solved once for both terms of its right-hand side. This is
    the chunkwise form of the delta rule (Yang et al. 2024, arXiv:2412.06464, section 3.3), written for p.
    """
    key, value, g, beta = (chunked(tensor.float()) for tensor in (key, value, g[..., None], beta[..., None]))
    elapsed = g.cumsum(dim=3)  # G [batch, head, chunk, position, 1]
    between = (elapsed - elapsed.transpose(3, 4)).tril(-1).exp()  # entries above the diagonal are not used
    onto = (key @ key.transpose(3, 4) * between).tril(-1) * beta.transpose(3, 4)
    from_start = key * elapsed.exp()
    both = torch.linalg.solve_triangular(
        onto, torch.cat([onto @ value, from_start], dim=-1), upper=False, unitriangular=True
    )
    of_values, of_state = both.split([value.shape[-1], key.shape[-1]], dim=-1)
    end = elapsed[..., -1:, :]
    to_end, decay = (key * (end - elapsed).exp()).transpose(3, 4), end.exp()

    shape = (*value.shape[:2], key.shape[-1], value.shape[-1])
    state = (value.new_zeros(shape) if state is None else state.float()).flatten(0, 1)
    tensors = (key, value, beta, g, elapsed, of_values, of_state, to_end, decay)
    by_chunk = (tensor.flatten(0, 1).unbind(1) for tensor in tensors)
    for k, v, strength, log_decay, since, from_values, from_state, onto_state, decayed in zip(*by_chunk, strict=True):
        predicted = torch.baddbmm(from_values, from_state, state)
        written = strength * (v - predicted)
        after = torch.baddbmm(decayed * state, onto_state, written)
        yield Chunk(k, predicted, written, log_decay, since, state, after)
        state = after


def chunked(tensor: torch.Tensor) -> torch.Tensor:
    """Reshape [batch, position, head, channel] to [batch, head, chunk, position, channel], padded with zeros."""
    width = min(CHUNK, tensor.shape[1])
    filler = -tensor.shape[1] % width
    padded = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, filler)) if filler else tensor
    return padded.transpose(1, 2).unflatten(2, (-1, width)).contiguous()
