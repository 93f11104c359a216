"""Hooks on one model that capture values into the buffers of its layer parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, Literal

import torch

from qwenlab.capture.active import mask_of_intervention
from qwenlab.capture.attention import AttentionCall, AttentionHooks
from qwenlab.capture.buffers import DETAILS, OF_CALLS, CaptureBuffer, constant
from qwenlab.capture.delta_rule import DeltaRuleCall, DeltaRuleHooks
from qwenlab.capture.layer_calls import ReadCall
from qwenlab.capture.layout import FLAT, attachment
from qwenlab.capture.wrapping import inputs, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotWatch

_ROUTER = ("router", "router.weights", "router.chosen")
"""The values that a router returns, in this order."""


class CaptureHooks:
    """Places the hooks that the wanted values need, and delivers a buffer once its part has run.

    Captured values by part of a layer, all [batch, position, ...] once they are read:

    mixer  `mixer.input` residual stream before the mixer · `mixer` its output · `mixer.rule` DeltaRuleCall, with
           details `mixer.state`, `mixer.rule.query` and `mixer.rule.out` on request · `mixer.attention` AttentionCall,
           with `mixer.attention.value` on request · `mixer.gate` logits of the output gate, [batch, position, head,
           channel] · `mixer.query` and the others of `sites`, but attention's `mixer.key`
    mlp    `mlp.input` residual stream before the MLP · `mlp` its output · `router` logits · `router.weights`,
           `router.chosen` of the top k · `experts` output of the routed experts · `shared_expert` output of the shared
           expert · `shared_expert_gate` its logit

    captured_states  which states to capture: "both"; only the "initial" one, at the first of several decode steps; or
                     none (""), where the initial state is the final state of the step before
    """

    def __init__(self, decoder: Decoder, deliver: Callable[[CaptureBuffer], None]) -> None:
        self.decoder, self.deliver = decoder, deliver
        self.captured_states: Literal["both", "initial", ""] = "both"
        self._complete, self._sampled, self._at_once = _Pass(), _Pass(), _Pass()
        self._buffers: list[CaptureBuffer] = []

    def begin(self, sampled: bool, at_once: bool) -> None:
        """Begin a forward pass, and drop what a pass that raised left behind.

        sampled  whether to capture the values that probes read only at the tokens that they sample
        at_once  whether to deliver each buffer when its part has run
        """
        for buffer in self._buffers:
            buffer.ended = 0
            if buffer.captured:
                buffer.captured = {}
        thread = get_ident()
        self._complete.thread = thread
        self._sampled.thread, self._at_once.thread = thread * sampled, thread * at_once

    def end(self) -> None:
        """End the forward pass: until the next, no hook captures (gradient checkpointing runs layers again)."""
        self._complete.thread = self._sampled.thread = self._at_once.thread = 0

    def place(self, buffers: Iterable[CaptureBuffer], hooks: ExitStack) -> None:
        """Place the hooks that fill these buffers, until `hooks` closes."""
        self._buffers = list(buffers)
        rules, attention = DeltaRuleHooks(self.decoder, hooks), AttentionHooks(self.decoder, hooks)
        for buffer in self._buffers:
            for name in buffer.wanted:
                if name == "mixer.rule":
                    rules.read(buffer.layer, self._rule_reader(buffer), self._pass(buffer, name).is_current)
                elif name == "mixer.attention":
                    attention.read(buffer.layer, partial(self._capture_attention, buffer))
                elif name != buffer.part and name not in _ROUTER:
                    self._place(buffer, name, hooks)
            self._place_router(buffer, hooks)
            self._place_end(buffer, hooks)

    def _pass(self, buffer: CaptureBuffer, name: str) -> _Pass:
        """The passes in which a value is captured."""
        return self._complete if name in buffer.complete else self._sampled

    def _place(self, buffer: CaptureBuffer, name: str, hooks: ExitStack) -> None:
        """Capture an output or an argument of a module."""
        place, current = attachment(self.decoder, buffer.layer, name), self._pass(buffer, name)
        assert place is not None, name
        buffer.wanted[name] = place.layout
        index = 0 if place.argument is None else place.argument

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> None:
            if current.thread == get_ident():
                buffer.captured[name] = out.detach() if out.requires_grad else out

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if current.thread == get_ident():
                value = args[index] if index < len(args) else (*args, *kwargs.values())[index]
                buffer.captured[name] = value.detach() if value.requires_grad else value

        hooks.enter_context(outputs(place.module, after) if place.argument is None else inputs(place.module, before))

    def _place_router(self, buffer: CaptureBuffer, hooks: ExitStack) -> None:
        """Capture the values that a router returns."""
        names = [(name, index, self._pass(buffer, name)) for index, name in enumerate(_ROUTER) if name in buffer.wanted]
        if not names:
            return
        buffer.wanted.update({name: FLAT for name, *_ in names})

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[torch.Tensor, ...]) -> None:
            thread, captured = get_ident(), buffer.captured
            for name, index, current in names:
                if current.thread == thread:
                    captured[name] = constant(out[index])

        hooks.enter_context(outputs(self.decoder.part(buffer.layer, "router"), after))

    def _place_end(self, buffer: CaptureBuffer, hooks: ExitStack) -> None:
        """Capture the output of the part, and deliver the buffer."""
        part, deliver, wanted = buffer.part, self.deliver, buffer.part in buffer.wanted
        every, current, at_once = self._complete, self._pass(buffer, part), self._at_once

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if every.thread == get_ident():
                if wanted and current.thread:
                    buffer.captured[part] = constant(out[0] if isinstance(out, tuple) else out)
                buffer.ended += 1
                if at_once.thread:
                    deliver(buffer)

        hooks.enter_context(outputs(self.decoder.adder(buffer.layer, part), after))

    def _rule_reader(self, buffer: CaptureBuffer) -> ReadCall[DeltaRuleCall]:
        """Return the function that captures each call of a layer's delta rule."""
        names = ("mixer.state", "mixer.rule.query", "mixer.rule.out")
        wants_states, wants_query, wants_out = (name in buffer.details for name in names)
        heads = torch.tensor(sorted(buffer.state_heads))

        def read(call: DeltaRuleCall, kwargs: dict[str, Any], result: Any) -> None:
            nonlocal heads
            for name in ("query", "key", "value", "g", "beta"):
                setattr(call, name, constant(getattr(call, name)))
            if not wants_query:
                call.query = None  # type: ignore[assignment]
            if wants_out:
                call.out = constant(result[0])
            if wants_states:
                call.state_heads = heads = heads.to(call.device)
                # The cache writes the next state into the same memory.
                call.initial = _copied(kwargs.get("initial_state"), heads) if self.captured_states else None
                call.final = _copied(result[1], heads) if self.captured_states == "both" else None
            buffer.captured["mixer.rule"] = call

        return read

    def _capture_attention(self, buffer: CaptureBuffer, call: AttentionCall, *_: Any) -> None:
        if self._complete.thread != get_ident():
            return
        if call.window is not None:
            raise CannotWatch(
                "The attention function gets a sliding window instead of a mask, so attention probes cannot know which "
                "keys are visible.\n"
                'Use masks, with model.set_attn_implementation("sdpa"), or leave Attention and SoftmaxAttention out.'
            )
        value = constant(call.value) if "mixer.attention.value" in buffer.details and call.value is not None else None
        query, key = constant(call.query), constant(call.key)
        if not self._pass(buffer, "mixer.attention").thread:
            buffer.newest_keys = key, value
            return
        visible = mask_of_intervention(call.mask)
        buffer.captured["mixer.attention"] = AttentionCall(query, key, call.scaling, value, visible=visible)


@dataclass(slots=True)
class _Pass:
    """A pass whose values are captured, and the thread that runs it; 0 outside of one.

    Another thread may be in a pass that began before the block.
    """

    thread: int = 0

    def is_current(self) -> bool:
        """Return whether the current thread runs it."""
        return self.thread == get_ident()


def readable(decoder: Decoder, layer: int) -> tuple[str, ...]:
    """Return the names of the values that can be captured in a layer."""
    kind, routed = decoder.layer_types[layer], decoder.part(layer, "experts") is not None
    place, config = decoder.kind(layer).place, decoder.module.config
    call = "mixer.rule" if kind == DELTANET else "mixer.attention"
    details = [name for name, of in DETAILS.items() if of == call]
    modules = [name for name in ("mixer.gate", "mixer.heads", "mixer.value") if place(name, config) is not None]
    experts = [*_ROUTER, "experts", "shared_expert", "shared_expert_gate"] if routed else []
    return ("mixer.input", "mixer", call, *details, *OF_CALLS[kind], *modules, "mlp.input", "mlp", *experts)


def _copied(state: torch.Tensor | None, heads: torch.Tensor) -> torch.Tensor | None:
    return None if state is None else state.detach().index_select(1, heads)
