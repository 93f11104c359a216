"""Changes of what layers call by name: their delta rule, their convolution and their attention function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from qwenlab.capture.active import clear_mask, set_mask
from qwenlab.capture.running import RunningLayer
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import listening, outputs
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.interventions.call_arguments import AttentionArguments, RuleArguments
from qwenlab.interventions.hits import CountedPoints, HitCount

ChangeRule = Callable[[RuleArguments, TokenBatch], RuleArguments | None]
"""What a layer hands on and what was read -> what it hands on now; None: that is left alone."""
ChangeAttention = Callable[[AttentionArguments, TokenBatch], AttentionArguments | None]
ChangeWeight = Callable[[torch.Tensor, TokenBatch], torch.Tensor | None]
InPlaceOfRule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], TokenBatch], Any]
"""The rule, its arguments and keyword arguments, and what was read -> what the rule would return; None: let it run."""


@dataclass
class CallSites(CountedPoints):
    """Functions that all layers of a kind call by one name: which layer is calling is known from its mixer."""

    _running: RunningLayer[int] = field(default_factory=RunningLayer)  # the DeltaNet layer
    _rules: dict[int, list[Callable[[RuleArguments], RuleArguments]]] = field(default_factory=dict)
    _attending: dict[int, list[Callable[[AttentionArguments], AttentionArguments]]] = field(default_factory=dict)
    _replaced: dict[int, list[Callable[..., Any]]] = field(default_factory=dict)
    _convolved: dict[int, list[Callable[[torch.Tensor], torch.Tensor]]] = field(default_factory=dict)
    _announced: set[int] = field(default_factory=set)

    def begin(self, reading: TokenBatch) -> None:
        """The model is about to read this."""
        super().begin(reading)
        self._running.end()

    def end(self) -> None:
        """The pass is over."""
        super().end()
        self._running.end()
        for layer in self.decoder.layers_of(ATTENTION) if self._attending else ():
            clear_mask(self.decoder.mixer(layer))

    def rule(self, layer: int, where: str, change: ChangeRule) -> None:
        """Change what a DeltaNet layer hands to its delta rule."""
        fired = self._note(where)
        self._listen_to_rules()
        self._announce(layer)
        self._rules.setdefault(layer, []).append(lambda call: self._told(fired, change, call) or call)

    def rule_itself(self, layer: int, where: str | None, instead: InPlaceOfRule) -> None:
        """Run something else where a DeltaNet layer runs its delta rule.

        where  None for another way to the same result: that is not counted
        """
        fired = HitCount("") if where is None else self._note(where)
        self._listen_to_rules()
        self._announce(layer)

        def run(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            query = args[0] if args else kwargs["query"]
            new = self._told(fired, lambda _, reading: instead(rule, args, kwargs, reading), query)
            return rule(*args, **kwargs) if new is None else new

        self._replaced.setdefault(layer, []).append(run)

    def convolution(self, layer: int, where: str, change: ChangeWeight) -> None:
        """Change the weights [channel, tap] with which a DeltaNet layer convolves; the last tap is the token's own."""
        fired = self._note(where)
        if not self._convolved:
            self._listen_to_convolutions()
        self._announce(layer)
        changes = self._convolved.setdefault(layer, [])
        changes.append(lambda weight: weight if (new := self._told(fired, change, weight)) is None else new)

    def attention(self, layer: int, where: str, change: ChangeAttention) -> None:
        """Change what an attention layer hands to its attention function."""
        fired = self._note(where)
        if not self._attending:
            self._listen_to_attention()
        changes = self._attending.setdefault(id(self.decoder.mixer(layer)), [])
        changes.append(lambda call: self._told(fired, change, call) or call)

    def _announce(self, layer: int) -> None:
        """Know when this DeltaNet layer is the one that calls."""
        if layer in self._announced:
            return
        self._announced.add(layer)

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._running.begin(layer)
            try:
                return run(*args, **kwargs)
            finally:
                self._running.end()

        self.hooks.enter_context(outputs(self.decoder.mixer(layer), around=around))

    def _listen_to_rules(self) -> None:
        """A layer calls its rule through its module's globals, by one of two names."""
        if self._rules or self._replaced:
            return
        family = self.decoder.family
        names = vars(sys.modules[family.modeling])

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            layer = self._running.layer
            changes = [] if layer is None else self._rules.get(layer, [])
            if changes and layer is not None:
                mixer: Any = self.decoder.mixer(layer)
                call = RuleArguments.of(args, kwargs, mixer.num_k_heads)
                for change in changes:
                    call = change(call)
                args, kwargs = call.given(args, kwargs)
            return run(*args, **kwargs)

        def instead(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            layer = self._running.layer
            for run in () if layer is None else self._replaced.get(layer, ()):
                rule = partial(run, rule)
            return rule(*args, **kwargs)

        for name in (family.chunk_rule, family.recurrent_rule):
            self.hooks.enter_context(listening(names, name, names[name], around=around, instead=instead))

    def _listen_to_convolutions(self) -> None:
        """A layer calls its convolution as it does its rule, by one name for pieces and by one for decode steps."""
        names = vars(sys.modules[self.decoder.family.modeling])
        for name, index in (("causal_conv1d_fn", 1), ("causal_conv1d_update", 2)):

            def around(run: Callable[..., Any], *args: Any, index: int = index, **kwargs: Any) -> Any:
                layer = self._running.layer
                for change in () if layer is None else self._convolved.get(layer, ()):
                    if len(args) > index:
                        args = (*args[:index], change(args[index]), *args[index + 1 :])
                    else:
                        kwargs["weight"] = change(kwargs["weight"])
                return run(*args, **kwargs)

            self.hooks.enter_context(listening(names, name, names[name], around=around))

    def _listen_to_attention(self) -> None:
        """The implementation in use is looked up among transformers' functions; "eager" is one of the modeling file."""
        modeling = sys.modules[self.decoder.family.modeling]
        functions, name = modeling.ALL_ATTENTION_FUNCTIONS, self.decoder.module.config._attn_implementation

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = given = AttentionArguments.of(args, kwargs)
            for change in self._attending.get(id(call.module), []):
                call = change(call)
            if call.mask is not None and call.mask is not given.mask:
                set_mask(call.module, call.mask)
            return run(*call.args, **call.kwargs)

        if name in functions:
            hook = listening(functions._local_mapping, name, functions[name], around=around)
        else:
            eager = "eager_attention_forward"
            hook = listening(vars(modeling), eager, getattr(modeling, eager), around=around)
        self.hooks.enter_context(hook)
