"""Count the experts that tokens choose: by group, in pairs, and from token to token and layer to layer."""

from __future__ import annotations

import numpy as np
import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.probes.accumulators import Accumulator, LayerSlice, Sums, Totals, counted

MAX_PAIRS = 2**21
"""Pairs of experts that are counted at a time (elements): those of a block of tokens."""


class Choices(Accumulator):
    """Counts of the chosen experts of each layer, from their indices alone, so memory does not grow with the experts.

    sums  per token: `tokens`; `repeated`, the experts that a token shares with the one before it, also across calls,
          and `pairs`, the tokens with one before them
    """

    def __init__(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts
        self.sums = Sums(layers)
        self._by_expert = Totals(layers)  # [layer, group, (load, weight), expert]
        self._together, self._following = Totals(layers), Totals(layers)  # [layer, expert, expert]

    def add(self, where: LayerSlice, chosen: torch.Tensor, weights: torch.Tensor, tokens: TokenBatch) -> None:
        """Add `chosen` int [layer, batch, position, k], and their renormalised weights, float32."""
        ones = torch.ones_like(chosen[..., 0])
        self.sums.add(where, tokens, tokens=ones, **self._repeats(where, chosen, tokens))
        flat = chosen.flatten(1, 2)
        self._add_load(where, flat, weights.flatten(1), tokens)
        self._add_together(where, flat, tokens)
        self._add_following(where, chosen, weights, tokens)

    def _add_load(self, where: LayerSlice, flat: torch.Tensor, weights: torch.Tensor, tokens: TokenBatch) -> None:
        """Add the choices [layer, token, k] to the groups of their tokens; those of padding to padding's."""
        total = self._by_expert.at_least(tokens.groups, (2, self._experts), flat.device)[where].flatten(1)
        cell = (flat + tokens.group.reshape(-1, 1) * (2 * self._experts)).flatten(1).to(total.device)
        total.scatter_add_(1, cell, total.new_ones(1).expand_as(cell))
        total.scatter_add_(1, cell + self._experts, weights.to(total))

    def _add_together(self, where: LayerSlice, flat: torch.Tensor, tokens: TokenBatch) -> None:
        layers, count, k = flat.shape
        most = max(1, MAX_PAIRS // (layers * k * k))
        for start in range(0, count, most):
            some = flat[:, start : start + most]
            cell = some[..., None] * self._experts + some[:, :, None]
            self._count(self._together, where, cell.flatten(1), tokens, slice(start, start + most))

    def _add_following(
        self, where: LayerSlice, chosen: torch.Tensor, weights: torch.Tensor, tokens: TokenBatch
    ) -> None:
        """Count pairs of the top choice in a layer and in the next watched layer."""
        top = chosen.gather(-1, weights.argmax(dim=-1, keepdim=True))[..., 0]
        layers = slice(where.start, where.stop - 1)
        name = (id(self), "top")
        before: tuple[int, torch.Tensor] | None = tokens.carry.get(name)
        tokens.carry[name] = (layers.stop, top[-1])
        if before is not None and before[0] == where.start - 1 and before[1].shape == top[0].shape:
            top, layers = torch.cat([before[1].to(top.device)[None], top]), slice(before[0], layers.stop)
        if len(top) > 1:
            pair = (top[:-1] * self._experts + top[1:]).flatten(1)
            self._count(self._following, layers, pair, tokens, slice(None))

    def _count(self, counts: Totals, where: LayerSlice, pair: torch.Tensor, tokens: TokenBatch, of: slice) -> None:
        """Count pairs of experts [layer, token * pairs] of these tokens, batch and position flattened."""
        total = counts.at_least(self._experts, (self._experts,), pair.device)[where].flatten(1)
        if tokens.whole:
            ones = total.new_ones(1).expand_as(pair)
        else:
            real = tokens.real.flatten()[of].to(total)[:, None]
            ones = real.expand(-1, pair.shape[1] // len(real)).flatten().expand_as(pair)
        total.scatter_add_(1, pair.to(total.device), ones)

    def _repeats(self, where: LayerSlice, chosen: torch.Tensor, tokens: TokenBatch) -> dict[str, torch.Tensor]:
        """Return the number of experts that each token shares with the one before it, also across calls."""
        newest = tokens.carried((id(self), "newest"), self._layers, chosen[:, :, 0], -1)
        last = newest[where].to(chosen.device)
        with_last = torch.cat([last[:, :, None], chosen], dim=2)
        before = with_last.gather(2, tokens.before[None, :, :, None].expand_as(chosen))
        repeated = (chosen[..., None] == before[..., None, :]).flatten(3).sum(dim=-1)
        now = chosen.gather(2, tokens.last[None, :, None, None].expand_as(chosen[:, :, :1]))[:, :, 0]
        newest[where] = torch.where(tokens.idle[:, None], last, now).to(newest.device)
        return {"repeated": torch.where(tokens.follows, repeated, 0), "pairs": tokens.follows.expand_as(repeated)}

    def by_expert(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how often each expert was chosen, and the sum of its weights: [label, fold, layer, expert] each."""
        values = self._by_expert.by_group(labels, 2, self._experts)
        return values[..., 0, :], values[..., 1, :]

    def by_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens that chose two experts, and tokens by top choice here and in the next layer: [layer, 2, 2]."""
        both = (counts.array(self._experts, self._experts) for counts in (self._together, self._following))
        together, following = map(counted, both)
        return together, following
