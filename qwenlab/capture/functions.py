"""Functions that all layers of a kind call by one name: the delta rule, its convolution and the attention function.

A layer calls its kernel through the globals of its module, and the call does not name the layer. So those names are
wrapped, and the layer is the one that is running (delta rule, convolution) or the module that the call passes on
(attention).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from qwenlab.capture.active import mark_mask
from qwenlab.capture.calls import AttentionCall, DeltaRuleCall
from qwenlab.capture.running import RunningLayers, running_layers
from qwenlab.capture.wrapping import After, Around, listening
from qwenlab.checkpoint.decoder import Decoder

NewRuleCall = Callable[[DeltaRuleCall], DeltaRuleCall]
NewAttentionCall = Callable[[AttentionCall], AttentionCall]
NewWeight = Callable[[torch.Tensor], torch.Tensor]

_CONVOLUTIONS = (("causal_conv1d_fn", 1), ("causal_conv1d_update", 2))
"""The convolutions of prefill and of decode steps, and the index of their weight among the arguments."""


class LayerFunctions:
    """Reads and changes the functions that the layers of one model call, until `hooks` closes."""

    def __init__(self, decoder: Decoder, hooks: ExitStack) -> None:
        self._decoder, self._hooks = decoder, hooks
        self._running: RunningLayers | None = None
        self._wrapped: set[str] = set()
        self._rule_readers: dict[int, After] = {}
        self._rule_changes: defaultdict[int, list[NewRuleCall]] = defaultdict(list)
        self._rules: defaultdict[int, list[Around]] = defaultdict(list)
        self._weight_changes: defaultdict[int, list[NewWeight]] = defaultdict(list)
        self._attention_readers: dict[Any, Callable[[AttentionCall], None]] = {}
        self._attention_changes: defaultdict[Any, list[NewAttentionCall]] = defaultdict(list)

    def read_rule(self, layer: int, read: After) -> None:
        """Call `read` with the arguments, keyword arguments and result of each call of this layer's delta rule."""
        self._rule_readers[layer] = read
        self._wrap_rules("read", after=self._read_rule)

    def change_rule(self, layer: int, change: NewRuleCall) -> None:
        """Change the arguments of this layer's delta rule."""
        self._rule_changes[layer].append(change)
        self._wrap_rules("change", around=self._change_rule)

    def replace_rule(self, layer: int, run: Around) -> None:
        """Run `run(rule, *args, **kwargs)` instead of this layer's delta rule."""
        self._rules[layer].append(run)
        self._wrap_rules("replace", instead=self._replace_rule)

    def change_convolution(self, layer: int, change: NewWeight) -> None:
        """Change the weights [channel, tap] of this layer's convolution; the last tap is the token's own."""
        self._weight_changes[layer].append(change)
        if self._first("convolution"):
            self._follow()
            names = self._names()
            for name, index in _CONVOLUTIONS:
                wrapper = partial(self._change_convolution, index)
                self._hooks.enter_context(listening(names, name, names[name], around=wrapper))

    def read_attention(self, layer: int, read: Callable[[AttentionCall], None]) -> None:
        """Call `read` with each call of this layer's attention function."""
        self._attention_readers[self._decoder.mixer(layer)] = read
        self._wrap_attention("read attention", after=self._read_attention)

    def change_attention(self, layer: int, change: NewAttentionCall) -> None:
        """Change the arguments of this layer's attention function."""
        self._attention_changes[self._decoder.mixer(layer)].append(change)
        self._wrap_attention("change attention", around=self._change_attention)

    def _read_rule(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (read := self._rule_readers.get(self._layer)) is not None:  # type: ignore[arg-type]
            read(args, kwargs, result)

    def _change_rule(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self._layer
        if layer is not None and layer in self._rule_changes:
            mixer: Any = self._decoder.mixer(layer)
            call = DeltaRuleCall.from_call(args, kwargs, mixer.num_k_heads)
            for change in self._rule_changes[layer]:
                call = change(call)
            args, kwargs = call.to_call(args, kwargs)
        return run(*args, **kwargs)

    def _replace_rule(self, rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for run in self._rules.get(self._layer, ()):  # type: ignore[arg-type]
            rule = partial(run, rule)
        return rule(*args, **kwargs)

    def _change_convolution(self, index: int, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for change in self._weight_changes.get(self._layer, ()):  # type: ignore[arg-type]
            if len(args) > index:
                args = (*args[:index], change(args[index]), *args[index + 1 :])
            else:
                kwargs["weight"] = change(kwargs["weight"])
        return run(*args, **kwargs)

    def _read_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (read := self._attention_readers.get(args[0] if args else kwargs["module"])) is not None:
            read(AttentionCall.from_call(args, kwargs))

    def _change_attention(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if (changes := self._attention_changes.get(args[0] if args else kwargs["module"])) is None:
            return run(*args, **kwargs)
        call = original = AttentionCall.from_call(args, kwargs)
        for change in changes:
            call = change(call)
        if call.mask is not None and call.mask is not original.mask:
            mark_mask(call.mask)
        args, kwargs = call.to_call(args, kwargs)
        return run(*args, **kwargs)

    @property
    def _layer(self) -> int | None:
        """The DeltaNet layer that the current thread is running."""
        return None if self._running is None else self._running.layer

    def _names(self) -> dict[str, Any]:
        return vars(sys.modules[self._decoder.family.modeling])

    def _first(self, what: str) -> bool:
        first = what not in self._wrapped
        self._wrapped.add(what)
        return first

    def _follow(self) -> None:
        if self._running is None:
            self._running = running_layers(self._decoder, self._hooks)

    def _wrap_rules(self, what: str, **how: Any) -> None:
        """Wrap both names by which layers call the rule, one for prefill and one for decode steps."""
        if self._first(what):
            self._follow()
            names, family = self._names(), self._decoder.family
            for name in (family.chunk_rule, family.recurrent_rule):
                self._hooks.enter_context(listening(names, name, names[name], **how))

    def _wrap_attention(self, what: str, **how: Any) -> None:
        """Wrap the attention implementation in use: one of transformers' table, or "eager" of the modeling file."""
        if self._first(what):
            names, name = self._names(), self._decoder.module.config._attn_implementation
            functions = names["ALL_ATTENTION_FUNCTIONS"]
            if name in functions:
                hook = listening(functions._local_mapping, name, functions[name], **how)
            else:
                eager = "eager_attention_forward"
                hook = listening(names, eager, names[eager], **how)
            self._hooks.enter_context(hook)
