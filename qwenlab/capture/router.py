"""The result of a router, read or replaced by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Routed:
    """The result of a router, sequences and positions in one axis.

    logits   [token, expert], before the softmax
    weights  [token, k]: of the chosen experts
    chosen   int [token, k]: their indices
    """

    logits: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.logits.device


def rerouted(router: Any, logits: torch.Tensor, k: int) -> Routed:
    """Return the result of a transformers router for these logits [token, expert] and `k` experts per token.

    Softmax in float32 over all experts, the k largest, renormalised to 1 unless the config's `norm_topk_prob` is false
    (qwen3_next reads it; the others always renormalise).
    """
    weights, chosen = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routed(logits, weights.to(logits.dtype), chosen)
