"""Interventions on functions that layers call by name: the delta rule, the convolution and the attention function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from qwenlab.capture.active import clear_mask, set_mask
from qwenlab.capture.running import RunningLayer
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import listening, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.interventions.call_arguments import AttentionArguments, RuleArguments
from qwenlab.interventions.hits import HitCount, HitCounter

ChangeRule = Callable[[RuleArguments, TokenBatch], RuleArguments | None]
"""The arguments of the delta rule and the tokens read -> the new arguments, or None to leave them."""
ChangeAttention = Callable[[AttentionArguments, TokenBatch], AttentionArguments | None]
ChangeWeight = Callable[[torch.Tensor, TokenBatch], torch.Tensor | None]
ReplaceRule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], TokenBatch], Any]
"""The rule, its arguments and keyword arguments, and the tokens read -> its result, or None to let the rule run."""


@dataclass
class CallSites:
    """Functions that all layers of a kind call by one name. The mixer that is running tells which layer calls.

    hooks  undoes the wrapping when the block ends
    hits   counts
    """

    decoder: Decoder
    hooks: ExitStack
    hits: HitCounter
    _running: RunningLayer[int] = field(default_factory=RunningLayer)  # the DeltaNet layer
    _rule_changes: dict[int, list[Callable[[RuleArguments], RuleArguments]]] = field(default_factory=dict)
    _rules: dict[int, list[Callable[..., Any]]] = field(default_factory=dict)
    _weight_changes: dict[int, list[Callable[[torch.Tensor], torch.Tensor]]] = field(default_factory=dict)
    _attention_changes: dict[int, list[Callable[[AttentionArguments], AttentionArguments]]] = field(
        default_factory=dict
    )
    _tracked: set[int] = field(default_factory=set)

    def begin(self) -> None:
        """Start of a forward pass."""
        self._running.end()

    def end(self) -> None:
        """End of the forward pass."""
        self._running.end()
        for layer in self.decoder.layers_of(ATTENTION) if self._attention_changes else ():
            clear_mask(self.decoder.mixer(layer))

    def rule(self, layer: int, where: str, change: ChangeRule) -> None:
        """Change the arguments of a DeltaNet layer's delta rule."""
        count = self.hits.add(where)
        self._wrap_rules()
        self._track(layer)
        self._rule_changes.setdefault(layer, []).append(lambda call: self.hits.apply(count, change, call) or call)

    def replace_rule(self, layer: int, where: str | None, new_rule: ReplaceRule) -> None:
        """Replace the delta rule of a DeltaNet layer.

        where  None for another way to the same result: that is not counted
        """
        count = HitCount("") if where is None else self.hits.add(where)
        self._wrap_rules()
        self._track(layer)

        def run(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            query = args[0] if args else kwargs["query"]
            new = self.hits.apply(count, lambda _, tokens: new_rule(rule, args, kwargs, tokens), query)
            return rule(*args, **kwargs) if new is None else new

        self._rules.setdefault(layer, []).append(run)

    def convolution(self, layer: int, where: str, change: ChangeWeight) -> None:
        """Change the weights [channel, tap] of a DeltaNet layer's convolution; the last tap is the token's own."""
        count = self.hits.add(where)
        if not self._weight_changes:
            self._wrap_convolutions()
        self._track(layer)
        changes = self._weight_changes.setdefault(layer, [])
        changes.append(lambda weight: weight if (new := self.hits.apply(count, change, weight)) is None else new)

    def attention(self, layer: int, where: str, change: ChangeAttention) -> None:
        """Change the arguments of an attention layer's attention function."""
        count = self.hits.add(where)
        if not self._attention_changes:
            self._wrap_attention()
        changes = self._attention_changes.setdefault(id(self.decoder.mixer(layer)), [])
        changes.append(lambda call: self.hits.apply(count, change, call) or call)

    def _track(self, layer: int) -> None:
        """Note while this DeltaNet layer runs, so that its calls are known as its own."""
        if layer in self._tracked:
            return
        self._tracked.add(layer)

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._running.begin(layer)
            try:
                return run(*args, **kwargs)
            finally:
                self._running.end()

        self.hooks.enter_context(outputs(self.decoder.mixer(layer), around=wrapper))

    def _wrap_rules(self) -> None:
        """Wrap both names by which a layer calls its rule through its module's globals."""
        if self._rule_changes or self._rules:
            return
        family = self.decoder.family
        names = vars(sys.modules[family.modeling])

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            layer = self._running.layer
            changes = [] if layer is None else self._rule_changes.get(layer, [])
            if changes and layer is not None:
                mixer: Any = self.decoder.mixer(layer)
                call = RuleArguments.from_call(args, kwargs, mixer.num_k_heads)
                for change in changes:
                    call = change(call)
                args, kwargs = call.to_call(args, kwargs)
            return run(*args, **kwargs)

        def replacement(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            layer = self._running.layer
            for run in () if layer is None else self._rules.get(layer, ()):
                rule = partial(run, rule)
            return rule(*args, **kwargs)

        for name in (family.chunk_rule, family.recurrent_rule):
            self.hooks.enter_context(listening(names, name, names[name], around=wrapper, instead=replacement))

    def _wrap_convolutions(self) -> None:
        """Wrap both convolutions, one for prefill and one for decode steps, in the module's globals."""
        names = vars(sys.modules[self.decoder.family.modeling])
        for name, index in (("causal_conv1d_fn", 1), ("causal_conv1d_update", 2)):

            def wrapper(run: Callable[..., Any], *args: Any, index: int = index, **kwargs: Any) -> Any:
                layer = self._running.layer
                for change in () if layer is None else self._weight_changes.get(layer, ()):
                    if len(args) > index:
                        args = (*args[:index], change(args[index]), *args[index + 1 :])
                    else:
                        kwargs["weight"] = change(kwargs["weight"])
                return run(*args, **kwargs)

            self.hooks.enter_context(listening(names, name, names[name], around=wrapper))

    def _wrap_attention(self) -> None:
        """Wrap the attention function in use: one of transformers' table, or "eager" of the modeling file."""
        modeling = sys.modules[self.decoder.family.modeling]
        functions, name = modeling.ALL_ATTENTION_FUNCTIONS, self.decoder.module.config._attn_implementation

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = original = AttentionArguments(args, kwargs)
            for change in self._attention_changes.get(id(call.module), []):
                call = change(call)
            if call.mask is not None and call.mask is not original.mask:
                set_mask(call.module, call.mask)
            return run(*call.args, **call.kwargs)

        if name in functions:
            hook = listening(functions._local_mapping, name, functions[name], around=wrapper)
        else:
            eager = "eager_attention_forward"
            hook = listening(vars(modeling), eager, getattr(modeling, eager), around=wrapper)
        self.hooks.enter_context(hook)
