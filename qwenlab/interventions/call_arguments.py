"""What a layer hands to its kernel, and what a router returns: read by name, changed, and handed on as it came."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

_OF_RULE = ("query", "key", "value", "g", "beta")
_OF_ATTENTION = ("module", "query", "key", "value", "attention_mask")


@dataclass(frozen=True)
class RuleArguments:
    """What a DeltaNet layer hands to its delta rule.

    query, key   [batch, position, key head, channel], before their L2 norm
    value        [batch, position, head, channel]
    g, beta      [batch, position, head]: ln of the decay, write strength
    repeated     how often the layer repeats each key head before the call (transformers 5.17 does so)
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    repeated: int = 1

    @property
    def at(self) -> torch.device:
        """Where the layer runs."""
        return self.g.device

    def but(self, **changed: torch.Tensor) -> RuleArguments:
        """The same with some tensors in place of others."""
        return replace(self, **changed)  # type: ignore[arg-type]

    def of_heads(self, which: torch.Tensor) -> RuleArguments:
        """Those of some value heads, int [head], each with its own query and key."""
        own = which // (self.value.shape[2] // self.key.shape[2])
        query, key = (each.index_select(2, own) for each in (self.query, self.key))
        value, g, beta = (each.index_select(2, which) for each in (self.value, self.g, self.beta))
        return RuleArguments(query, key, value, g, beta)

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], key_heads: int) -> RuleArguments:
        """Those of a call by a layer with so many key heads: kernels name them differently, and keep their order."""
        query, key, value, g, beta = (*args, *(kwargs[name] for name in _OF_RULE[len(args) :]))[:5]
        repeated = key.shape[2] // key_heads
        return RuleArguments(query[:, :, ::repeated], key[:, :, ::repeated], value, g, beta, repeated)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call again, with these."""
        repeated = {name: getattr(self, name).repeat_interleave(self.repeated, dim=2) for name in ("query", "key")}
        held = [repeated.get(name, getattr(self, name)) for name in _OF_RULE]
        count = min(len(args), len(_OF_RULE))
        return (*held[:count], *args[count:]), kwargs | dict(zip(_OF_RULE[count:], held[count:], strict=True))


@dataclass(frozen=True)
class AttentionArguments:
    """What an attention layer hands to its attention function.

    module      the layer's mixer
    query       [batch, head, position, channel], normed and rotated
    key, value  [batch, key head, past + position, channel]
    mask        as the implementation takes it; None where it is causal by itself
    args, kwargs  the whole call
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionArguments:
        """Those of a call."""
        return AttentionArguments(args, kwargs)

    def _get(self, name: str) -> Any:
        index = _OF_ATTENTION.index(name)
        return self.args[index] if index < len(self.args) else self.kwargs[name]

    @property
    def module(self) -> nn.Module:
        """The mixer that calls."""
        return self._get("module")

    @property
    def query(self) -> torch.Tensor:
        """[batch, head, position, channel]"""
        return self._get("query")

    @property
    def key(self) -> torch.Tensor:
        """[batch, key head, past + position, channel]"""
        return self._get("key")

    @property
    def mask(self) -> torch.Tensor | None:
        """As the implementation takes it."""
        return self._get("attention_mask")

    @property
    def at(self) -> torch.device:
        """Where the layer runs."""
        return self.query.device

    def but(self, **changed: Any) -> AttentionArguments:
        """The same with some arguments in place of others, by their names in transformers' attention functions."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in changed.items():
            index = _OF_ATTENTION.index(name) if name in _OF_ATTENTION else len(args)
            if index < len(args):
                args[index] = value
            else:
                kwargs[name] = value
        return AttentionArguments(tuple(args), kwargs)


@dataclass(frozen=True)
class Routed:
    """What a router returns, tokens and positions in one axis.

    logits   [token, expert], before the softmax
    weights  [token, k]: of the chosen experts
    chosen   int [token, k]: their numbers
    """

    logits: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor

    @property
    def at(self) -> torch.device:
        """Where the layer runs."""
        return self.logits.device


def rerouted(router: Any, logits: torch.Tensor, k: int) -> Routed:
    """The choice that a router of transformers makes by these logits [token, expert], `k` experts a token.

    Softmax in float32 over all experts, the k largest, renormalised to 1 unless the config's `norm_topk_prob` is false
    (qwen3_next reads it; the others always renormalise).
    """
    weights, chosen = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routed(logits, weights.to(logits.dtype), chosen)
