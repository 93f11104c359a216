"""The places of one model at which edits change what passes: each kind of place is reached in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from qwenlab.capture.sequences import cache_among
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import changed, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.call_arguments import AttentionArguments, Routed, RuleArguments, rerouted
from qwenlab.interventions.call_sites import CallSites, ChangeAttention, ChangeRule

ChangeValue = Callable[[torch.Tensor, TokenBatch], torch.Tensor | None]
"""A value [batch, position, ...] and what was read -> the new value of that shape; None: this one is left alone."""
ChangeRouted = Callable[[Routed, TokenBatch], Routed | None]

LEAST_DECAY = 1e-18
"""Decays below are taken for this one: it leaves nothing of a state in float32, and its ln is still summed exactly."""


@dataclass
class InterventionPoints(CallSites):
    """The places of one model that the edits of a block asked for: sites, modules, and what layers call by name."""

    def value(self, site: Site, change: ChangeValue) -> None:
        """Change the value at a site. Raises CannotIntervene for one that cannot be."""
        layer, word, delta = site.layer, site.word, site.kind == DELTANET
        if word == "residual":
            self.output(self.decoder.layers[layer], site.name, change)
        elif word in ("mixer", "mlp", "experts", "shared_expert"):
            self.output(self.decoder.part(layer, word), site.name, change)
        elif word == "router":
            self.routed(layer, site.name, _with_logits(change, self.decoder.part(layer, "router")))
        elif word == "mixer.heads":
            self._given(self._output_projection(layer), site.name, 0, heads_of(self.decoder, site), change)
        elif word == "mixer.gate" and delta:
            self._given(getattr(self.decoder.mixer(layer), "norm"), site.name, 1, heads_of(self.decoder, site), change)  # noqa: B009
        elif word == "mixer.gate":
            self._half(self.decoder.mixer(layer), site.name, change)
        elif delta:
            self.rule(layer, site.name, _with_argument(change, word.removeprefix("mixer.")))
        elif word == "mixer.query":
            self.attention(layer, site.name, _with_query(change))
        elif word == "mixer.value":
            self._projected(self.decoder.mixer(layer), site.name, heads_of(self.decoder, site), change)
        else:
            raise CannotIntervene(
                f"{site.name} cannot be changed: attention caches its keys after their rotation, those of earlier "
                "tokens stand beside them in the call.\nChange mixer.query, mixer.value or mixer.heads, or hide tokens "
                "with Window(n)."
            )

    def output(self, module: nn.Module, where: str, change: ChangeValue) -> None:
        """Change what a module returns: [batch, position, channel], or the same with both in one axis."""
        fired = self._note(where)

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            if (reading := self._now()) is None:
                return result
            value = result[0] if isinstance(result, tuple) else result
            new = self._told(fired, change, value.reshape(reading.batch, reading.width, -1))
            if new is None:
                return result
            new = new.to(value.dtype).reshape(value.shape)
            return (new, *result[1:]) if isinstance(result, tuple) else new

        self.hooks.enter_context(changed(module, around))

    def layer(self, layer: int, where: str, change: Callable[[torch.Tensor, torch.Tensor, TokenBatch], Any]) -> None:
        """Change what a layer returns, knowing the stream that it was given: change(stream, output, reading)."""
        fired = self._note(where)

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            if self._now() is None:
                return result
            stream = args[0] if args else kwargs["hidden_states"]
            value = result[0] if isinstance(result, tuple) else result
            new = self._told(fired, lambda value, reading: change(stream, value, reading), value)
            if new is None:
                return result
            new = new.to(value)  # in a split model the stream may come from another device
            return (new, *result[1:]) if isinstance(result, tuple) else new

        self.hooks.enter_context(changed(self.decoder.layers[layer], around))

    def cache(self, where: str, change: Callable[[Cache], None]) -> None:
        """Change what a pass left in its cache, where it has one."""
        fired = self._note(where)

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            fired.reached += 1
            cache = cache_among(args, kwargs, out)
            if cache is not None:
                fired.acted += 1
                change(cache)

        self.hooks.enter_context(outputs(self.decoder.module, after))

    def routed(self, layer: int, where: str, change: ChangeRouted) -> None:
        """Change what a router returns."""
        fired = self._note(where)

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            if self._now() is None:
                return result
            new = self._told(fired, change, Routed(*result))
            return result if new is None else (new.logits, new.weights, new.chosen)

        self.hooks.enter_context(changed(self.decoder.part(layer, "router"), around))

    def _output_projection(self, layer: int) -> nn.Module:
        kind = self.decoder.layer_types[layer]
        return self.decoder.mixer(layer).get_submodule(self.decoder.family.output(kind))

    def _given(self, module: nn.Module, where: str, index: int, heads: int | None, change: ChangeValue) -> None:
        """Change one of the arguments of a module, which holds the channels of these heads."""
        fired = self._note(where)

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if (reading := self._now()) is not None:
                value = args[index]
                new = self._told(fired, change, value.reshape(reading.batch, reading.width, heads, -1))
                if new is not None:
                    args = (*args[:index], new.to(value.dtype).reshape(value.shape), *args[index + 1 :])
            return run(*args, **kwargs)

        self.hooks.enter_context(changed(module, around, outside=False))

    def _half(self, mixer: Any, where: str, change: ChangeValue) -> None:
        """Change the output gate of attention: `q_proj` gives each head its query, then its gate."""

        def of_gates(value: torch.Tensor, reading: TokenBatch) -> torch.Tensor | None:
            halves = value.unflatten(-1, (-1, 2, mixer.head_dim))
            new = change(halves[..., 1, :], reading)
            return None if new is None else torch.stack([halves[..., 0, :], new.to(value.dtype)], dim=-2).flatten(2)

        self.output(mixer.q_proj, where, of_gates)

    def _projected(self, mixer: Any, where: str, heads: int | None, change: ChangeValue) -> None:
        """Change attention's values before they are cached."""

        def of_values(value: torch.Tensor, reading: TokenBatch) -> torch.Tensor | None:
            new = change(value.unflatten(-1, (heads or 1, -1)), reading)
            return None if new is None else new.flatten(2)

        self.output(mixer.v_proj, where, of_values)


def heads_of(decoder: Decoder, site: Site) -> int | None:
    """How many heads the value at a site has; None where it has no axis of heads."""
    if not {"head", "key_head"} & set(site.dims):
        return None
    if site.kind == DELTANET:
        mixer: Any = decoder.mixer(site.layer)
        return int(mixer.num_k_heads if "key_head" in site.dims else mixer.num_v_heads)
    config: Any = decoder.module.config
    return int(config.num_key_value_heads if "key_head" in site.dims else config.num_attention_heads)


def _with_argument(change: ChangeValue, name: str) -> ChangeRule:
    """A change of one argument of the delta rule, the decay as the share that is kept."""

    def of_call(call: RuleArguments, reading: TokenBatch) -> RuleArguments | None:
        old = call.g.exp() if name == "decay" else getattr(call, name)
        new = change(old, reading)
        if new is None:
            return None
        if name == "decay":  # exp and ln there and back would round those that were left alone
            log = new.float().clamp_min(LEAST_DECAY).log().to(call.g.dtype)
            return call.but(g=torch.where(new == old, call.g, log))
        return call.but(**{name: new.to(old.dtype)})

    return of_call


def _with_query(change: ChangeValue) -> ChangeAttention:
    def of_call(call: AttentionArguments, reading: TokenBatch) -> AttentionArguments | None:
        new = change(call.query.transpose(1, 2), reading)
        return None if new is None else call.but(query=new.to(call.query.dtype).transpose(1, 2))

    return of_call


def _with_logits(change: ChangeValue, router: Any) -> ChangeRouted:
    def of_router(routed: Routed, reading: TokenBatch) -> Routed | None:
        new = change(routed.logits.reshape(reading.batch, reading.width, -1), reading)
        return None if new is None else rerouted(router, new.reshape(routed.logits.shape), routed.chosen.shape[-1])

    return of_router
