"""Where interventions attach to a model: module outputs, module arguments, router results, and named functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache

from qwenlab.capture.active import clear_mask
from qwenlab.capture.calls import AttentionCall, DeltaRuleCall, Routed, rerouted
from qwenlab.capture.functions import LayerFunctions
from qwenlab.capture.layout import Attachment, attachment, head_counts
from qwenlab.capture.sequences import cache_among
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import changed, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.call_sites import CallSites, ChangeAttention, ChangeRule
from qwenlab.interventions.hits import HitCounter

ChangeValue = Callable[[torch.Tensor, TokenBatch], torch.Tensor | None]
"""A value [batch, position, ...] and the tokens read -> the new value of that shape, or None to leave it."""
ChangeRouted = Callable[[Routed, TokenBatch], Routed | None]

LEAST_DECAY = 1e-18
"""Smaller decays are set to this one: it leaves nothing of a state in float32, and its ln is still summed exactly."""


@dataclass
class InterventionPoints:
    """The points of one model at which the interventions of a block change values.

    hooks  undoes the changes when the block ends
    hits   a count per point
    calls  points at functions that layers call by name
    """

    decoder: Decoder
    hooks: ExitStack
    hits: HitCounter = field(default_factory=HitCounter)
    calls: CallSites = field(init=False)

    def __post_init__(self) -> None:
        self.calls = CallSites(LayerFunctions(self.decoder, self.hooks), self.hits)

    def begin(self, tokens: TokenBatch) -> None:
        """Start of a forward pass over these tokens, in the current thread."""
        self.hits.begin(tokens)

    def end(self) -> None:
        """End of the forward pass."""
        self.hits.end()
        for layer in self.decoder.layers_of(ATTENTION):
            clear_mask(self.decoder.mixer(layer))

    def value(self, site: Site, change: ChangeValue) -> None:
        """Change the value at a site. Raises CannotIntervene for a site whose value cannot be changed."""
        layer, word = site.layer, site.word
        place = attachment(self.decoder, layer, word)
        if word == "router":
            self.router(layer, site.name, _with_logits(change, self.decoder.part(layer, "router")))
        elif place is not None and place.argument is not None:
            self._argument(place, place.argument, site.name, change)
        elif place is not None:
            self._output(place, site.name, lambda args, kwargs, value, tokens: change(value, tokens))
        elif site.kind == DELTANET:
            self.calls.rule(layer, site.name, _with_argument(change, word.removeprefix("mixer.")))
        elif word == "mixer.query":
            self.calls.attention(layer, site.name, _with_query(change))
        else:
            raise CannotIntervene(
                f"{site.name} cannot be changed: attention caches rotated keys, and each call holds those of earlier "
                "tokens too.\nChange mixer.query, mixer.value or mixer.heads, or hide tokens with Window(n)."
            )

    def layer(self, layer: int, where: str, change: Callable[[torch.Tensor, torch.Tensor, TokenBatch], Any]) -> None:
        """Change the output of a layer, given its input: change(input, output, tokens)."""

        def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], value: torch.Tensor, tokens: TokenBatch) -> Any:
            return change(args[0] if args else kwargs["hidden_states"], value, tokens)

        self._output(Attachment(self.decoder.layers[layer]), where, with_input)

    def _output(self, place: Attachment, where: str, change: Callable[..., Any]) -> None:
        count = self.hits.add(where)

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            if (tokens := self.hits.tokens()) is None:
                return result
            value = result[0] if isinstance(result, tuple) else result
            seen = place.layout.view(value, tokens.batch, tokens.width)
            new = self.hits.apply(count, partial(change, args, kwargs), seen)
            if new is None:
                return result
            new = place.layout.put(new, value)
            return (new, *result[1:]) if isinstance(result, tuple) else new

        self.hooks.enter_context(changed(place.module, wrapper))

    def _argument(self, place: Attachment, index: int, where: str, change: ChangeValue) -> None:
        count = self.hits.add(where)

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if (tokens := self.hits.tokens()) is not None:
                seen = place.layout.view(args[index], tokens.batch, tokens.width)
                new = self.hits.apply(count, change, seen)
                if new is not None:
                    args = (*args[:index], place.layout.put(new, args[index]), *args[index + 1 :])
            return run(*args, **kwargs)

        self.hooks.enter_context(changed(place.module, wrapper, outside=False))

    def cache(self, where: str, change: Callable[[Cache], None]) -> None:
        """Change the cache that a pass leaves, where it has one."""
        count = self.hits.add(where)

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            count.reached += 1
            cache = cache_among(args, kwargs, out)
            if cache is not None:
                count.acted += 1
                change(cache)

        self.hooks.enter_context(outputs(self.decoder.module, after))

    def router(self, layer: int, where: str, change: ChangeRouted) -> None:
        """Change the result of a router."""
        count = self.hits.add(where)

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            new = self.hits.apply(count, change, Routed(*result))
            return result if new is None else (new.logits, new.weights, new.chosen)

        self.hooks.enter_context(changed(self.decoder.part(layer, "router"), wrapper))


def heads_of(decoder: Decoder, site: Site) -> int | None:
    """Number of heads of the value at a site; None where it has no head axis."""
    if not {"head", "key_head"} & set(site.dims):
        return None
    return head_counts(decoder, site.layer)["key_head" in site.dims]


def _with_argument(change: ChangeValue, name: str) -> ChangeRule:
    """Change one argument of the delta rule; the decay as alpha, not its ln."""

    def of_call(call: DeltaRuleCall, tokens: TokenBatch) -> DeltaRuleCall | None:
        old = call.g.exp() if name == "decay" else getattr(call, name)
        new = change(old, tokens)
        if new is None:
            return None
        if name == "decay":  # exp and ln would round the decays that do not change
            log = new.float().clamp_min(LEAST_DECAY).log().to(call.g.dtype)
            return call.replaced(g=torch.where(new == old, call.g, log))
        return call.replaced(**{name: new.to(old.dtype)})

    return of_call


def _with_query(change: ChangeValue) -> ChangeAttention:
    def of_call(call: AttentionCall, tokens: TokenBatch) -> AttentionCall | None:
        new = change(call.query.transpose(1, 2), tokens)
        return None if new is None else call.replaced(query=new.to(call.query.dtype).transpose(1, 2))

    return of_call


def _with_logits(change: ChangeValue, router: Any) -> ChangeRouted:
    def of_router(routed: Routed, tokens: TokenBatch) -> Routed | None:
        new = change(routed.logits.reshape(tokens.batch, tokens.width, -1), tokens)
        return None if new is None else rerouted(router, new.reshape(routed.logits.shape), routed.chosen.shape[-1])

    return of_router
