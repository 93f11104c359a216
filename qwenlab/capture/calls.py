"""Calls inside a layer, read or replaced by name: of the delta rule, of the attention function and of the router."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from qwenlab.capture.prediction import normalised, predictions
from qwenlab.capture.tokens import TokenBatch

_OF_RULE = ("query", "key", "value", "g", "beta")
_OF_ATTENTION = ("module", "query", "key", "value", "attention_mask")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments of a call."""


@dataclass(slots=True)
class DeltaRuleCall:
    """One call of the delta rule by one DeltaNet layer, or consecutive decode steps joined into one call.

    query, key      [batch, position, key head, channel], before their L2 norm; a probe that reads no queries has none
    value           [batch, position, head, channel]
    g, beta         [batch, position, head]: ln of the decay, write strength
    repeated        how often the layer repeats each key head before the call (transformers 5.17 does so)
    initial, final  [batch, state head, key channel, channel]: states before the first token and after the last, as
                    passed to and returned by the kernel; None where empty or not known
    state_heads     int [state head]: the value heads of these states, rising; None for all
    out             [batch, position, head, channel]: the kernel's result, where a probe reads it
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    repeated: int = 1
    initial: torch.Tensor | None = None
    final: torch.Tensor | None = None
    state_heads: torch.Tensor | None = None
    out: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position, head]"""
        return tuple(self.g.shape)

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.g.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the number of tokens."""
        tensors = (self.query, self.key, self.value, self.g, self.beta, self.out)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @staticmethod
    def from_call(args: tuple[Any, ...], kwargs: dict[str, Any], key_heads: int) -> DeltaRuleCall:
        """Read a call by a layer with `key_heads` key heads. Kernels differ in names, not in order."""
        query, key, value, g, beta = (*args, *(kwargs[name] for name in _OF_RULE[len(args) :]))[:5]
        repeated = key.shape[2] // key_heads
        if repeated > 1:
            query, key = query[:, :, ::repeated], key[:, :, ::repeated]
        return DeltaRuleCall(query, key, value, g, beta, repeated)

    def to_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of the original call with these tensors."""
        repeated = {name: getattr(self, name).repeat_interleave(self.repeated, dim=2) for name in ("query", "key")}
        tensors = [repeated.get(name, getattr(self, name)) for name in _OF_RULE]
        count = min(len(args), len(_OF_RULE))
        return (*tensors[:count], *args[count:]), kwargs | dict(zip(_OF_RULE[count:], tensors[count:], strict=True))

    def replaced(self, **tensors: torch.Tensor) -> DeltaRuleCall:
        """Return a copy with some tensors replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def of_heads(self, heads: torch.Tensor) -> DeltaRuleCall:
        """Return the call of these value heads alone, int [head], each with its own query and key."""
        key_heads = heads // (self.value.shape[2] // self.key.shape[2])
        query, key = (tensor.index_select(2, key_heads) for tensor in (self.query, self.key))
        value, g, beta = (tensor.index_select(2, heads) for tensor in (self.value, self.g, self.beta))
        return DeltaRuleCall(query, key, value, g, beta)

    def updates(
        self, heads: torch.Tensor, tokens: TokenBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return normalised keys, values, g and beta of these value heads, each [batch, position, these heads, ...].

        Those of padding are 0, so that padding leaves the state unchanged (alpha 1, beta 0).
        """
        key = self.key.index_select(2, heads // (self.value.shape[2] // self.key.shape[2]))
        value, g, beta = (tensor.index_select(2, heads) for tensor in (self.value, self.g, self.beta))
        key, value, g, beta = (tokens.masked(tensor) for tensor in (normalised(key), value, g, beta))
        return key, value, g, beta

    def states(self, heads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the initial and the final state of these value heads, which are among `state_heads`."""
        at = heads if self.state_heads is None else torch.searchsorted(self.state_heads, heads)
        initial, final = (None if each is None else each.index_select(1, at) for each in (self.initial, self.final))
        return initial, final

    def predict(self, heads: torch.Tensor, tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction of each value by these heads, and their state after each row's last real token.

        returns  [batch, position, these heads, channel] and [batch, these heads, key channel, channel]
        """
        return predictions(*self.updates(heads, tokens), self.states(heads)[0])

    @staticmethod
    def joined(calls: list[DeltaRuleCall]) -> DeltaRuleCall:
        """Join consecutive decode steps into one call."""
        names = [name for name in (*_OF_RULE, "out") if getattr(calls[0], name) is not None]
        tensors = {name: torch.cat([getattr(call, name) for call in calls], dim=1) for name in names}
        return replace(calls[0], final=calls[-1].final, **tensors)  # type: ignore[arg-type]


@dataclass(slots=True)
class AttentionCall:
    """One call of the attention function by one layer, or consecutive decode steps joined into one call.

    query    [batch, head, position, channel], normed and rotated
    key      [batch, key head, past + position, channel]: all keys of the cache, normed and rotated
    scaling  factor on the scores
    value    [batch, key head, past + position, channel]; a probe that reads no values has none
    mask     as the implementation takes it; None where it is causal by itself
    visible  bool [batch, 1 or head, position, past + position]: which keys each query may attend to; only where an
             intervention changed that
    window   width of a sliding window that the implementation applies without a mask; None without one
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    value: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    window: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position]"""
        return self.query.shape[0], self.query.shape[2]

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.query.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the number of tokens."""
        return self.query.nbytes + (0 if self.visible is None else self.visible.nbytes)

    @staticmethod
    def from_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionCall:
        """Read a call of one of transformers' attention functions."""
        call = dict(zip(_OF_ATTENTION, args, strict=False)) | kwargs
        query, scaling = call["query"], call.get("scaling") or call["query"].shape[-1] ** -0.5
        mask, window = call["attention_mask"], call.get("sliding_window")
        return AttentionCall(query, call["key"], scaling, call["value"], mask, None, window)

    def to_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of the original call with this query, mask and window."""
        new = {"query": self.query, "attention_mask": self.mask}
        kwargs = kwargs | ({} if self.window is None else {"sliding_window": self.window})
        positional = [new.get(name, value) for name, value in zip(_OF_ATTENTION, args, strict=False)]
        kwargs |= {name: value for name, value in new.items() if name in _OF_ATTENTION[len(args) :]}
        return (*positional, *args[len(_OF_ATTENTION) :]), kwargs

    def replaced(self, **values: Any) -> AttentionCall:
        """Return a copy with another query, mask or window."""
        return replace(self, **values)

    @staticmethod
    def joined(calls: list[AttentionCall]) -> AttentionCall:
        """Join consecutive decode steps; the last step's keys and values include those of all steps."""
        query = torch.cat([call.query for call in calls], dim=2)
        visible = None if all(call.visible is None for call in calls) else _joined_masks(calls)
        return replace(calls[-1], query=query, visible=visible)


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


def _joined_masks(calls: list[AttentionCall]) -> torch.Tensor:
    """Join the masks of decode steps; a step that no intervention changed sees all keys up to its own."""
    columns, visible = calls[-1].key.shape[2], []
    heads = max(1 if call.visible is None else call.visible.shape[1] for call in calls)
    for call in calls:
        shape = (call.query.shape[0], heads, call.query.shape[2], -1)
        own = call.query.new_ones(1, 1, 1, columns, dtype=torch.bool) if call.visible is None else call.visible
        visible.append(torch.nn.functional.pad(own, (0, columns - own.shape[3])).expand(shape))
    return torch.cat(visible, dim=2)
