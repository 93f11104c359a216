"""Hooks on one model that leave what they see in the inboxes of its layers' parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import get_ident
from typing import Any

from torch import nn

from qwenlab.capture.active import mask_of_intervention
from qwenlab.capture.buffers import FLAT, AttentionCall, CaptureBuffer, CaptureLayout
from qwenlab.capture.delta_rule import DeltaRuleCall, DeltaRuleHook, constant
from qwenlab.capture.wrapping import inputs, listening, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotWatch

Leave = Callable[[Any], None]
ROUTER = ("router", "weights", "chosen")


class CaptureHooks:
    """Places the hooks that the wanted notes need, and hands an inbox over once its part has run.

    Notes, by part of a layer (all [batch, position, ...] once they are read):

    mixer  `stream` residual stream before the mixer · `mixer` its output · `rule` RuleCall or `attention` AttentionCall
           · `gate` logits of the output gate, [batch, position, head, channel]
    mlp    `stream` before the MLP · `mlp` its output · `router` logits · `weights`, `chosen` of the top k · `routed`
           output of the routed experts · `shared` output of the shared expert · `shared_gate` its logit
    """

    def __init__(self, decoder: Decoder, hand_over: Callable[[CaptureBuffer], None]) -> None:
        self.decoder, self.hand_over = decoder, hand_over
        self.rule = DeltaRuleHook(decoder.family, self._leave_rule)
        self.valued: tuple[int, ...] = ()  # layers of which attention's values are noted with its keys
        self._thread = 0  # the one that runs a pass; another may be in a pass that began before the block
        self._inboxes: list[CaptureBuffer] = []
        self._speaking: CaptureBuffer | None = None  # the DeltaNet layer that is running
        self._attending: dict[int, CaptureBuffer] = {}  # by id of the attention module

    def begin(self) -> None:
        """A forward pass begins; what a pass that broke off left is dropped."""
        for inbox in self._inboxes:
            inbox.notes = {}
        self._hush()
        self._thread = get_ident()

    def end(self) -> None:
        """The forward pass is over: until the next, no hook looks (gradient checkpointing runs layers again)."""
        self._thread = 0

    def place(self, inboxes: Iterable[CaptureBuffer], hooks: ExitStack) -> None:
        """Place the hooks for what these want, until `hooks` closes."""
        self._inboxes = list(inboxes)
        if any("rule" in inbox.wanted for inbox in self._inboxes):
            self.rule.listen(hooks)
        for inbox in self._inboxes:
            (self._place_mixer if inbox.part == "mixer" else self._place_mlp)(inbox, hooks)
        if self._attending:
            self._listen_to_attention(hooks)

    def _place_mixer(self, inbox: CaptureBuffer, hooks: ExitStack) -> None:
        mixer, wanted, start = self.decoder.part(inbox.layer, "mixer"), inbox.wanted, None
        if "stream" in wanted:
            self._before(self.decoder.layers[inbox.layer], self._first_of(inbox, "stream"), hooks)
        if "rule" in wanted:
            start = self._announcement(inbox, mixer.num_k_heads)
        if "attention" in wanted:
            self._attending[id(mixer)] = inbox
        if "gate" in wanted and self.decoder.layer_types[inbox.layer] == DELTANET:
            wanted["gate"] = CaptureLayout(rows=mixer.num_v_heads)
            self._before(mixer.norm, lambda given: inbox.leave("gate", given[1]), hooks)
        elif "gate" in wanted:
            # `q_proj` gives each head its query, then its gate.
            wanted["gate"] = CaptureLayout(shape=(-1, 2, mixer.head_dim), index=1)
            self._after(mixer.q_proj, lambda out: inbox.leave("gate", out), hooks)
        self._after(mixer, self._finish(inbox), hooks, start)

    def _place_mlp(self, inbox: CaptureBuffer, hooks: ExitStack) -> None:
        wanted = inbox.wanted
        if "stream" in wanted:
            self._before(self.decoder.part(inbox.layer, "mlp_norm"), self._first_of(inbox, "stream"), hooks)
        if asked := [(name, index) for index, name in enumerate(ROUTER) if name in wanted]:

            def leave_router(out: tuple[Any, ...]) -> None:
                for name, index in asked:
                    inbox.leave(name, out[index])

            self._after(self.decoder.part(inbox.layer, "router"), leave_router, hooks)
        experts = (("routed", "experts"), ("shared", "shared_expert"), ("shared_gate", "shared_expert_gate"))
        for name, word in experts:
            if name in wanted:
                self._after(self.decoder.part(inbox.layer, word), self._output(inbox, name), hooks)
        wanted.update({name: FLAT for name in (*ROUTER, *(name for name, _ in experts)) if name in wanted})
        self._after(self.decoder.part(inbox.layer, "mlp"), self._finish(inbox), hooks)

    def _first_of(self, inbox: CaptureBuffer, name: str) -> Leave:
        return lambda given: inbox.leave(name, given[0])

    def _output(self, inbox: CaptureBuffer, name: str) -> Leave:
        return lambda out: inbox.leave(name, out)

    def _finish(self, inbox: CaptureBuffer) -> Leave:
        """What is done when a part has run: note its output, and hand its inbox over."""
        part, asked = inbox.part, inbox.part in inbox.wanted

        def finish(out: Any) -> None:
            self._hush()
            if asked:
                inbox.leave(part, out[0] if isinstance(out, tuple) else out)
            self.hand_over(inbox)

        return finish

    def _before(self, module: nn.Module, look: Leave, hooks: ExitStack) -> None:
        def hook(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._thread == get_ident():
                look((*args, *kwargs.values()) if kwargs else args)

        hooks.enter_context(inputs(module, hook))

    def _after(self, module: nn.Module, look: Leave, hooks: ExitStack, start: Callable[[], None] | None = None) -> None:
        def hook(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if self._thread == get_ident():
                look(out)

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._thread == get_ident() and start is not None:
                start()

        hooks.enter_context(outputs(module, hook, before=before if start else None))

    def _announcement(self, inbox: CaptureBuffer, key_heads: int) -> Callable[[], None]:
        def announce() -> None:
            self._speaking = inbox
            self.rule.announce(inbox.layer, key_heads)

        return announce

    def _hush(self) -> None:
        self._speaking = None
        self.rule.hush()

    def _leave_rule(self, call: DeltaRuleCall) -> None:
        if self._thread == get_ident() and self._speaking is not None:
            self._speaking.notes["rule"] = call

    def _listen_to_attention(self, hooks: ExitStack) -> None:
        """Listen to the implementation in use where it is looked up, so that masks and kernels stay as they are."""
        modeling = sys.modules[self.decoder.family.modeling]
        functions, name = modeling.ALL_ATTENTION_FUNCTIONS, self.decoder.module.config._attn_implementation
        if name in functions:
            hooks.enter_context(listening(functions._local_mapping, name, functions[name], self._hear_attention))
        else:  # "eager" is a function of each modeling file
            eager = "eager_attention_forward"
            hooks.enter_context(listening(vars(modeling), eager, getattr(modeling, eager), self._hear_attention))

    def _hear_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = dict(zip(("module", "query", "key", "value", "attention_mask"), args, strict=False)) | kwargs
        inbox = self._attending.get(id(given["module"])) if self._thread == get_ident() else None
        if inbox is not None:
            _refuse_sliding(given)
            query, key = constant(given["query"]), constant(given["key"])
            scaling = given.get("scaling") or query.shape[-1] ** -0.5
            value = constant(given["value"]) if inbox.layer in self.valued else None
            seen = mask_of_intervention(given["module"], given["attention_mask"])
            inbox.notes["attention"] = AttentionCall(query, key, scaling, value, seen)


def _refuse_sliding(given: dict[str, Any]) -> None:
    """Refuse what flash attention is told of a window: no mask says what its queries may look at."""
    if given.get("sliding_window") is not None:
        raise CannotWatch(
            "The attention function is told of a sliding window, and probes of attention do not know what it hides.\n"
            'Watch with masks: model.set_attn_implementation("sdpa"); or leave Attention and SoftmaxAttention out.'
        )
