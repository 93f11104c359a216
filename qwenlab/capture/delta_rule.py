"""The delta rule of a DeltaNet layer: its call as a record, and where it is read, changed or replaced.

A layer calls the rule, and the convolution before it, through the globals of its module, and the call does not name the
layer. So those names are wrapped, and the layer is the one that is running.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from qwenlab.capture.layout import head_counts
from qwenlab.capture.prediction import normalised, predictions
from qwenlab.capture.running_layers import running_layers
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import Arguments, Around, listening
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
        names = [name for name in (*_ARGUMENTS, "out") if getattr(calls[0], name) is not None]
        tensors = {name: torch.cat([getattr(call, name) for call in calls], dim=1) for name in names}
        return replace(calls[0], final=calls[-1].final, **tensors)  # type: ignore[arg-type]


ReadRule = Callable[[DeltaRuleCall, dict[str, Any], Any], None]
"""A call of the rule, its keyword arguments and its result."""


class DeltaRuleHooks:
    """Reads and changes the delta rule and the convolution that the layers of one model call, until `hooks` closes.

    Another thread may run the model meanwhile, so a layer's reader or change is added last, when all it needs is there.
    """

    def __init__(self, decoder: Decoder, hooks: ExitStack) -> None:
        self._decoder, self._hooks = decoder, hooks
        self._running = running_layers(decoder)
        self._wrapped, self._key_heads = set[str](), dict[int, int]()
        self._readers: dict[int, tuple[ReadRule, Callable[[], bool]]] = {}
        self._changes: defaultdict[int, list[Callable[[DeltaRuleCall], DeltaRuleCall]]] = defaultdict(list)
        self._rules: defaultdict[int, list[Around]] = defaultdict(list)
        self._weight_changes: defaultdict[int, list[Callable[[torch.Tensor], torch.Tensor]]] = defaultdict(list)

    def read(self, layer: int, read: ReadRule, when: Callable[[], bool] = lambda: True) -> None:
        """Call `read` with each call of this layer's delta rule at which `when` returns True."""
        self._wrap_rules(layer, "read", after=self._read)
        self._readers[layer] = read, when

    def change(self, layer: int, change: Callable[[DeltaRuleCall], DeltaRuleCall]) -> None:
        """Change the arguments of this layer's delta rule."""
        self._wrap_rules(layer, "change", around=self._change)
        self._changes[layer].append(change)

    def replace(self, layer: int, run: Around) -> None:
        """Run `run(rule, *args, **kwargs)` instead of this layer's delta rule."""
        self._wrap_rules(layer, "replace", instead=self._replace)
        self._rules[layer].append(run)

    def change_convolution(self, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the weights [channel, tap] of this layer's convolution; the last tap is the token's own."""
        if self._first(layer, "convolution"):
            for name, index in CONVOLUTIONS.items():
                self._wrap(name, around=partial(self._change_convolution, index))
        self._weight_changes[layer].append(change)

    def call(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DeltaRuleCall:
        """Return the record of a call by this layer."""
        return DeltaRuleCall.from_call(args, kwargs, self._key_heads[layer])

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (layer := self._running.layer) is not None and layer in self._readers:
            read, when = self._readers[layer]
            if when():
                read(self.call(layer, args, kwargs), kwargs, result)

    def _change(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self._running.layer
        if layer is not None and layer in self._changes:
            call = self.call(layer, args, kwargs)
            for change in self._changes[layer]:
                call = change(call)
            args, kwargs = call.to_call(args, kwargs)
        return run(*args, **kwargs)

    def _replace(self, rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for run in self._rules.get(self._running.layer, ()):  # type: ignore[arg-type]
            rule = partial(run, rule)
        return rule(*args, **kwargs)

    def _change_convolution(self, index: int, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for change in self._weight_changes.get(self._running.layer, ()):  # type: ignore[arg-type]
            if len(args) > index:
                args = (*args[:index], change(args[index]), *args[index + 1 :])
            else:
                kwargs["weight"] = change(kwargs["weight"])
        return run(*args, **kwargs)

    def _first(self, layer: int, what: str) -> bool:
        """Follow the layer; return whether this is the first call for `what`."""
        if layer not in self._key_heads:
            self._key_heads[layer] = head_counts(self._decoder, layer)[1]
            self._hooks.enter_context(self._running.followed(self._decoder, layer))
        first = what not in self._wrapped
        self._wrapped.add(what)
        return first

    def _wrap_rules(self, layer: int, what: str, **how: Any) -> None:
        """Wrap both names by which layers call the rule, one for prefill and one for decode steps."""
        if self._first(layer, what):
            for name in self._decoder.family.deltanet.rules:
                self._wrap(name, **how)

    def _wrap(self, name: str, **how: Any) -> None:
        self._hooks.enter_context(listening(sys.modules[self._decoder.family.modeling], name, **how))
