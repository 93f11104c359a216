"""The arguments of delta rules and attention functions, and the results of routers: read and replaced by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

_OF_RULE = ("query", "key", "value", "g", "beta")
_OF_ATTENTION = ("module", "query", "key", "value", "attention_mask")


@dataclass(frozen=True)
class RuleArguments:
    """The arguments with which a DeltaNet layer calls its delta rule.

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
    def device(self) -> torch.device:
        """The device of the layer."""
        return self.g.device

    def replaced(self, **tensors: torch.Tensor) -> RuleArguments:
        """A copy with some tensors replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def of_heads(self, heads: torch.Tensor) -> RuleArguments:
        """The arguments of some value heads, int [head], each with its own query and key."""
        key_heads = heads // (self.value.shape[2] // self.key.shape[2])
        query, key = (tensor.index_select(2, key_heads) for tensor in (self.query, self.key))
        value, g, beta = (tensor.index_select(2, heads) for tensor in (self.value, self.g, self.beta))
        return RuleArguments(query, key, value, g, beta)

    @staticmethod
    def from_call(args: tuple[Any, ...], kwargs: dict[str, Any], key_heads: int) -> RuleArguments:
        """The arguments of a call by a layer with `key_heads` key heads. Kernels differ in names, not in order."""
        query, key, value, g, beta = (*args, *(kwargs[name] for name in _OF_RULE[len(args) :]))[:5]
        repeated = key.shape[2] // key_heads
        return RuleArguments(query[:, :, ::repeated], key[:, :, ::repeated], value, g, beta, repeated)

    def to_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keyword arguments of the original call, with these tensors."""
        repeated = {name: getattr(self, name).repeat_interleave(self.repeated, dim=2) for name in ("query", "key")}
        tensors = [repeated.get(name, getattr(self, name)) for name in _OF_RULE]
        count = min(len(args), len(_OF_RULE))
        return (*tensors[:count], *args[count:]), kwargs | dict(zip(_OF_RULE[count:], tensors[count:], strict=True))


def _argument(name: str) -> Any:
    """Property that reads one argument of an attention function's call."""
    index = _OF_ATTENTION.index(name)
    return property(lambda call: call.args[index] if index < len(call.args) else call.kwargs[name])


@dataclass(frozen=True)
class AttentionArguments:
    """The arguments with which an attention layer calls its attention function.

    args, kwargs  the whole call

    module  the layer's mixer
    query   [batch, head, position, channel], normed and rotated
    key     [batch, key head, past + position, channel]
    mask    as the implementation takes it; None where it is causal by itself
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    module, query, key, mask = (_argument(name) for name in ("module", "query", "key", "attention_mask"))

    @property
    def device(self) -> torch.device:
        """The device of the layer."""
        device: torch.device = self.query.device
        return device

    def replaced(self, **arguments: Any) -> AttentionArguments:
        """A copy with some arguments replaced, by their names in transformers' attention functions."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in arguments.items():
            index = _OF_ATTENTION.index(name) if name in _OF_ATTENTION else len(args)
            if index < len(args):
                args[index] = value
            else:
                kwargs[name] = value
        return AttentionArguments(tuple(args), kwargs)


@dataclass(frozen=True)
class Routed:
    """The result of a router, tokens and positions in one axis.

    logits   [token, expert], before the softmax
    weights  [token, k]: of the chosen experts
    chosen   int [token, k]: their indices
    """

    logits: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor

    @property
    def device(self) -> torch.device:
        """The device of the layer."""
        return self.logits.device


def rerouted(router: Any, logits: torch.Tensor, k: int) -> Routed:
    """The result of a transformers router for these logits [token, expert] and `k` experts per token.

    Softmax in float32 over all experts, the k largest, renormalised to 1 unless the config's `norm_topk_prob` is false
    (qwen3_next reads it; the others always renormalise).
    """
    weights, chosen = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routed(logits, weights.to(logits.dtype), chosen)
