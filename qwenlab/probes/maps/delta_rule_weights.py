"""Unroll the delta rule: the weight of each token's value in a DeltaNet head's output at a later token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch

from qwenlab.capture.prediction import CHUNK

Bounds = Sequence[int]
"""Per row, in rising order: an upper bound of the column of the row's query."""


class DeltaRuleWeights:
    """Keys, write strengths and decays of some heads over a text, prepared to compute rows of the map.

    With a the decay and b the write strength, a token does S <- a S; S <- S + k (b (v - S^T k))^T; o = S^T q (Yang et
    al. 2024, arXiv:2412.06464; transformers' `torch_recurrent_gated_delta_rule`): first decay, then removal. So o_t is
    the sum over s <= t of w(t, s) v_s, plus the contribution of the state before the text, with

        w(t, s) = b_s k_s^T  M_(s+1) M_(s+2) ... M_t  q_t,    M_i = a_i (I - b_i k_i k_i^T)

    In matrices, within any segment, with G the running sum of ln a and D(t, s) = exp(G_t - G_s):

        W = (Q K^T * D) (I + strict_lower(diag(b) K K^T * D))^-1 diag(b)

    Without the removal, as if a state were a sum of decayed writes, M_i = a_i and W = (Q K^T * D) diag(b): the weights
    of layers without a delta rule (Ali et al. 2024, arXiv:2403.01590), which are wrong for DeltaNet.

    A row is computed backwards, a chunk of 64 tokens at a time: the query that remains at a chunk's end includes the
    effect of all later tokens, so neither D nor the inverse is ever larger than a chunk.

    key      [batch, head, column, channel], normalised;  beta, g  [batch, head, column]: of padding beta 0 and g 0
    past     columns before the forward pass of the queries
    """

    def __init__(self, key: torch.Tensor, beta: torch.Tensor, g: torch.Tensor, past: int) -> None:
        self.past, self.columns = past, key.shape[2]
        self._front = -past % CHUNK  # a chunk begins where the pass does
        back = -(self._front + self.columns) % CHUNK
        self._key = torch.nn.functional.pad(key, (0, 0, self._front, back)).unflatten(2, (-1, CHUNK))
        beta, g = (torch.nn.functional.pad(each, (self._front, back)).unflatten(2, (-1, CHUNK)) for each in (beta, g))
        self._elapsed = g.cumsum(dim=3)  # G within each chunk [batch, head, chunk, position]
        between = (self._elapsed[..., None] - self._elapsed[..., None, :]).tril(-1).exp()
        onto = (self._key @ self._key.transpose(3, 4) * between).tril(-1) * beta[..., None]
        self._beta = beta[..., None, :]
        self._removed = torch.linalg.solve_triangular(onto, beta.diag_embed(), upper=False, unitriangular=True)

    def rows(
        self, query: torch.Tensor, column: torch.Tensor, bounds: Bounds, *, removal: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of some queries, and the part of each query that reads the state before the pass.

        query    [batch, head, row, channel], normalised and scaled
        column   int [batch, row]: column of each query
        bounds   see `Bounds`
        removal  False: without the removal by later tokens
        returns  [batch, head, row, column], 0 beyond the query's own column, and [batch, head, row, channel]
        """
        chunks, heads = self._key.shape[2], query.shape[1]
        place = column + self._front
        weights = query.new_zeros(*query.shape[:3], chunks * CHUNK)
        left = entering = torch.zeros_like(query)
        within = torch.arange(CHUNK, device=query.device)
        for chunk in reversed(range(chunks)):
            begin = chunk * CHUNK
            reached = slice(bisect_left(bounds, begin - self._front), None)
            inside = (place[:, reached] - begin)[:, None, :, None]
            at = inside.clamp(0, CHUNK - 1)
            now = torch.where((inside >= 0) & (inside < CHUNK), query[:, :, reached], left[:, :, reached])
            key, elapsed = self._key[:, :, chunk], self._elapsed[:, :, chunk, None]
            since = elapsed.expand(-1, -1, at.shape[2], -1).gather(3, at.expand(-1, heads, -1, -1))
            decay = (since - elapsed).masked_fill(within > at, -torch.inf).exp()
            scores, rest = now @ key.transpose(2, 3) * decay, since.exp() * now
            if removal:
                weight = scores @ self._removed[:, :, chunk]
                rest = rest - (weight * elapsed.exp()) @ key
            else:
                weight = scores * self._beta[:, :, chunk]
            weights[:, :, reached, begin : begin + CHUNK] = weight
            left[:, :, reached] = rest
            if begin == self._front + self.past:
                entering = left.clone()
        return weights[..., self._front : self._front + self.columns], entering
