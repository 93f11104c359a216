"""Points where interventions act: outputs and arguments of modules, results of routers, and called functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from transformers.cache_utils import Cache

from qwenlab.capture.attention import AttentionCall, AttentionHooks
from qwenlab.capture.delta_rule import DeltaRuleCall, DeltaRuleHooks
from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.layout import Attachment, ValueLayout, attachment, head_counts
from qwenlab.capture.model_passes import ModelPasses, Resume
from qwenlab.capture.router import Routed
from qwenlab.capture.running_layers import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import changed, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.changes import Change, ChangeValue, with_argument, with_logits, with_query

ReplaceRule = Callable[[DeltaRuleCall, Callable[..., Any], tuple[Any, ...], dict[str, Any], TokenBatch], Any]
"""A call, the rule, all its arguments, and the tokens read -> the result of the rule, or None to let it run."""


@dataclass
class HitCount:
    """Counts at one intervention point.

    where    its name: a site, or a function that a layer calls
    reached  how often a forward pass reached it
    acted    how often the intervention changed the value there
    """

    where: str
    reached: int = 0
    acted: int = 0


class InterventionPoints:
    """The points of one model at which the interventions of a block change values; none acts outside a forward pass.

    hooks   undoes the changes when the block ends
    counts  one per point, in the order in which they were added
    passes  the forward passes of the model in the block
    """

    def __init__(self, decoder: Decoder, hooks: ExitStack, calls: GenerateCalls | None = None) -> None:
        self.decoder, self.hooks, self.counts = decoder, hooks, list[HitCount]()
        self.passes = ModelPasses(decoder, SequenceTracker(decoder.module, calls))
        self._rules, self._attention = DeltaRuleHooks(decoder, hooks), AttentionHooks(decoder, hooks)
        self._tokens: TokenBatch | None = None
        self._thread = 0  # the one that runs the pass; another may be in a pass that began before the block
        self._before: list[tuple[int, int]] = []  # the counts before the pass

    def follow_passes(self) -> None:
        """Act in every forward pass from now on, until `hooks` closes."""
        threads = BlockThreads(self.decoder.module, "intervenes on", CannotIntervene)
        self.passes.follow(
            self.hooks, threads, begin=self._begin, end=self._end, abort=self._abort, suspend=self._suspend
        )

    def missed(self, counts: Sequence[HitCount]) -> str:
        """Return a message about the points that some pass did not reach; "" if every pass reached all of them."""
        finished = self.passes.finished
        silent = [count for count in counts if count.reached < finished]
        if not silent:
            return ""
        more = len(silent) - 1
        others = f", and {more} more {'point was' if more == 1 else 'points were'} missed" if more else ""
        return (
            f"{silent[0].where} was reached by {silent[0].reached} of {finished} forward passes{others}.\n"
            "A fused whole-layer kernel, a compiled layer or a skipped layer hides it: turn that off for this block."
        )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
        stack = self.decoder.module
        if stack.training and any(getattr(module, "gradient_checkpointing", False) for module in stack.modules()):
            raise CannotIntervene(
                "Gradient checkpointing runs the layers again after the forward pass, where interventions do not know "
                "which tokens they read.\nTurn it off for this block: model.gradient_checkpointing_disable()."
            )
        forward_pass = self.passes.tracker.open(args, kwargs)
        self._before = [(count.reached, count.acted) for count in self.counts]
        self._tokens, self._thread = self.passes.tracker.read([forward_pass]), get_ident()
        return forward_pass

    def _end(self, forward_pass: ForwardPass, cache: Cache | None) -> None:
        self._tokens = None

    def _abort(self) -> None:
        self._tokens = None
        for count, (reached, acted) in zip(self.counts, self._before, strict=True):
            count.reached, count.acted = reached, acted

    def _suspend(self) -> Resume:
        """Put the current pass aside: nothing acts until the result takes it up again."""
        tokens, self._tokens = self._tokens, None
        counted = self._counted_since(self._before)

        def resume() -> None:
            self._tokens, self._before = tokens, self._counted_since(counted)

        return resume

    def _counted_since(self, before: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The counts less those of `before`."""
        pairs = zip(self.counts, before, strict=True)
        return [(count.reached - reached, count.acted - acted) for count, (reached, acted) in pairs]

    def value(self, site: Site, change: ChangeValue) -> None:
        """Change the value at a site. Raises CannotIntervene for a site whose value cannot be changed."""
        layer, word = site.layer, site.word
        place = attachment(self.decoder, layer, word)
        if word == "router":
            self.router(layer, site.name, with_logits(change, self.decoder.part(layer, "router")))
        elif place is not None:
            self._module(place, site.name, change)
        elif site.kind == DELTANET:
            self.rule(layer, site.name, with_argument(change, word.removeprefix("mixer.")))
        elif word == "mixer.query":
            self.attention(layer, site.name, with_query(change))
        else:
            raise CannotIntervene(
                f"{site.name} cannot be changed: attention caches rotated keys, and each call holds those of earlier "
                "tokens too.\nChange mixer.query, mixer.value or mixer.heads, or hide tokens with Window(n)."
            )

    def layer(self, layer: int, where: str, change: Callable[[torch.Tensor, torch.Tensor, TokenBatch], Any]) -> None:
        """Change the output of a layer, given its input: change(output, input, tokens)."""
        self._module(Attachment(self.decoder.layers[layer]), where, change, with_input=True)

    def _module(self, place: Attachment, where: str, change: Callable[..., Any], with_input: bool = False) -> None:
        """Change the output of a module, or one of its arguments."""
        counted, index = self._counted(where, change, place.layout), place.argument or 0

        def argument(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return run(*args[:index], counted(args[index]), *args[index + 1 :], **kwargs)

        def output(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = [args[0] if args else kwargs["hidden_states"]] if with_input else []
            result = run(*args, **kwargs)
            return (counted(result[0], *given), *result[1:]) if isinstance(result, tuple) else counted(result, *given)

        of_output = place.argument is None
        self.hooks.enter_context(changed(place.module, output if of_output else argument, outside=of_output))

    def cache(self, where: str, change: Callable[[Cache], None]) -> None:
        """Change the cache that a pass leaves, where it has one."""
        count = HitCount(where)
        self.counts.append(count)

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            count.reached += 1
            cache = cache_among(args, kwargs, out)
            if cache is not None:
                count.acted += 1
                change(cache)

        self.hooks.enter_context(outputs(self.decoder.module, after))

    def router(self, layer: int, where: str, change: Change[Routed]) -> None:
        """Change the result of a router."""
        counted = self._counted(where, change)

        def wrapper(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            new = counted(Routed(*run(*args, **kwargs)))
            return new.logits, new.weights, new.chosen

        self.hooks.enter_context(changed(self.decoder.part(layer, "router"), wrapper))

    def rule(self, layer: int, where: str, change: Change[DeltaRuleCall]) -> None:
        """Change the arguments of a DeltaNet layer's delta rule."""
        self._rules.change(layer, self._counted(where, change))

    def replace_rule(self, layer: int, where: str | None, new_rule: ReplaceRule) -> None:
        """Replace the delta rule of a DeltaNet layer.

        where  None for another way to the same result: that is not counted
        """
        counted = self._counted(where, new_rule)

        def run(rule: Callable[..., Any], call: DeltaRuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = counted(call, rule, args, kwargs)
            return rule(*args, **kwargs) if result is call else result

        self._rules.replace(layer, run)

    def convolution(self, layer: int, where: str, change: ChangeValue) -> None:
        """Change the weights [channel, tap] of a DeltaNet layer's convolution; the last tap is the token's own."""
        self._rules.change_convolution(layer, self._counted(where, change))

    def attention(self, layer: int, where: str, change: Change[AttentionCall]) -> None:
        """Change the query, mask or window of an attention layer's attention function."""
        self._attention.change(layer, self._counted(where, change))

    def _current_tokens(self) -> TokenBatch | None:
        """The tokens that the current thread reads, or None. Raises CannotIntervene in a backward pass."""
        if self._tokens is not None and self._thread != get_ident():
            return None
        if self._tokens is None and torch._C._current_graph_task_id() >= 0:
            raise CannotIntervene(
                "A layer runs again in the backward pass, where interventions do not know which tokens it reads.\n"
                "Turn off activation checkpointing for this block."
            )
        return self._tokens

    def _counted(
        self, where: str | None, change: Callable[..., Any], layout: ValueLayout | None = None
    ) -> Callable[..., Any]:
        """A function of a value: the changed one, counted at a new point, or the same one where nothing changes.

        where   None for a point that is not counted
        layout  that of the value, if `change` takes it as [batch, position, ...]
        """
        count = HitCount(where or "")
        self.counts += [] if where is None else [count]

        def counted(value: Any, *given: Any) -> Any:
            if (tokens := self._current_tokens()) is None:
                return value
            seen = value if layout is None else layout.read([value], tokens.batch)
            count.reached += 1
            new = change(seen, *given, tokens.on(seen.device))
            count.acted += new is not None
            if new is None:
                return value
            return new if layout is None else layout.put(new, value)

        return counted


def heads_of(decoder: Decoder, site: Site) -> int | None:
    """Number of heads of the value at a site; None where it has no head axis."""
    if not {"head", "key_head"} & set(site.dims):
        return None
    return head_counts(decoder, site.layer)["key_head" in site.dims]
