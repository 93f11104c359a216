"""The delta rule of a DeltaNet layer: its call as a record, and where it is read, changed or replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from qwenlab.capture.layer_calls import LayerCalls
from qwenlab.capture.layout import head_counts
from qwenlab.capture.prediction import normalised, predictions
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import Arguments, listening
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.mixers.gated_deltanet import CONVOLUTIONS

_ARGUMENTS = ("query", "key", "value", "g", "beta")


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
        query, key, value, g, beta = (*args, *(kwargs[name] for name in _ARGUMENTS[len(args) :]))[:5]
        repeated = key.shape[2] // key_heads
        if repeated > 1:
            query, key = query[:, :, ::repeated], key[:, :, ::repeated]
        return DeltaRuleCall(query, key, value, g, beta, repeated)

    def to_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of the original call with these tensors."""
        repeated = {name: getattr(self, name).repeat_interleave(self.repeated, dim=2) for name in ("query", "key")}
        tensors = [repeated.get(name, getattr(self, name)) for name in _ARGUMENTS]
        count = min(len(args), len(_ARGUMENTS))
        return (*tensors[:count], *args[count:]), kwargs | dict(zip(_ARGUMENTS[count:], tensors[count:], strict=True))

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
        names = [name for name in (*_ARGUMENTS, "out") if getattr(calls[0], name) is not None]
        tensors = {name: torch.cat([getattr(call, name) for call in calls], dim=1) for name in names}
        return replace(calls[0], final=calls[-1].final, **tensors)  # type: ignore[arg-type]


class DeltaRuleHooks(LayerCalls[DeltaRuleCall]):
    """Reads and changes the delta rule and the convolution that the layers of one model call, until `hooks` closes.

    A layer calls them through the globals of its module, the rule by one name for prefill and another for decode steps.
    The call does not name the layer: it is the one that is running.
    """

    def __init__(self, decoder: Decoder, hooks: ExitStack) -> None:
        key_heads = cache(lambda layer: head_counts(decoder, layer)[1])

        def record(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DeltaRuleCall:
            return DeltaRuleCall.from_call(args, kwargs, key_heads(layer))

        wrap = partial(listening, sys.modules[decoder.family.modeling])
        super().__init__(decoder, hooks, [partial(wrap, name) for name in decoder.family.deltanet.rules], record)
        self._convolutions = {
            name: LayerCalls[Any](decoder, hooks, [partial(wrap, name)], record) for name in CONVOLUTIONS
        }

    def change_convolution(self, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the weights [channel, tap] of this layer's convolution; the last tap is the token's own."""

        def around(index: int, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if len(args) > index:
                args = (*args[:index], change(args[index]), *args[index + 1 :])
            else:
                kwargs["weight"] = change(kwargs["weight"])
            return run(*args, **kwargs)

        for name, index in CONVOLUTIONS.items():
            self._convolutions[name].listen(layer, around=partial(around, index))
