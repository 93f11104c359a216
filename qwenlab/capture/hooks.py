"""Hooks on one model that capture tensors into the buffers of its layer parts."""

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

Callback = Callable[[Any], None]
ROUTER = ("router", "weights", "chosen")


class CaptureHooks:
    """Places the hooks that the wanted values need, and delivers a buffer once its part has run.

    Captured values by part of a layer, all [batch, position, ...] once they are read:

    mixer  `stream` residual stream before the mixer · `mixer` its output · `rule` DeltaRuleCall or `attention`
           AttentionCall · `gate` logits of the output gate, [batch, position, head, channel]
    mlp    `stream` before the MLP · `mlp` its output · `router` logits · `weights`, `chosen` of the top k · `routed`
           output of the routed experts · `shared` output of the shared expert · `shared_gate` its logit
    """

    def __init__(self, decoder: Decoder, deliver: Callable[[CaptureBuffer], None]) -> None:
        self.decoder, self.deliver = decoder, deliver
        self.rule = DeltaRuleHook(decoder.family, self._capture_rule)
        self.value_layers: tuple[int, ...] = ()  # layers whose attention values are captured with the keys
        self._thread = 0  # the one that runs a pass; another may be in a pass that began before the block
        self._buffers: list[CaptureBuffer] = []
        self._deltanet: CaptureBuffer | None = None  # of the DeltaNet layer that is running
        self._attention: dict[int, CaptureBuffer] = {}  # by id of the attention module

    def begin(self) -> None:
        """Begin a forward pass, and drop what a pass that raised left behind."""
        for buffer in self._buffers:
            buffer.captured = {}
        self._end_mixer()
        self._thread = get_ident()

    def end(self) -> None:
        """End the forward pass: until the next, no hook captures (gradient checkpointing runs layers again)."""
        self._thread = 0

    def place(self, buffers: Iterable[CaptureBuffer], hooks: ExitStack) -> None:
        """Place the hooks that fill these buffers, until `hooks` closes."""
        self._buffers = list(buffers)
        if any("rule" in buffer.wanted for buffer in self._buffers):
            self.rule.listen(hooks)
        for buffer in self._buffers:
            (self._place_mixer if buffer.part == "mixer" else self._place_mlp)(buffer, hooks)
        if self._attention:
            self._hook_attention(hooks)

    def _place_mixer(self, buffer: CaptureBuffer, hooks: ExitStack) -> None:
        mixer, wanted, start = self.decoder.part(buffer.layer, "mixer"), buffer.wanted, None
        if "stream" in wanted:
            self._before(self.decoder.layers[buffer.layer], self._first_argument(buffer, "stream"), hooks)
        if "rule" in wanted:
            start = self._begin_mixer(buffer, mixer.num_k_heads)
        if "attention" in wanted:
            self._attention[id(mixer)] = buffer
        if "gate" in wanted and self.decoder.layer_types[buffer.layer] == DELTANET:
            wanted["gate"] = CaptureLayout(rows=mixer.num_v_heads)
            self._before(mixer.norm, lambda args: buffer.put("gate", args[1]), hooks)
        elif "gate" in wanted:
            # `q_proj` yields, per head, its query and then its gate.
            wanted["gate"] = CaptureLayout(shape=(-1, 2, mixer.head_dim), index=1)
            self._after(mixer.q_proj, self._output(buffer, "gate"), hooks)
        self._after(mixer, self._finish(buffer), hooks, start)

    def _place_mlp(self, buffer: CaptureBuffer, hooks: ExitStack) -> None:
        wanted = buffer.wanted
        if "stream" in wanted:
            self._before(self.decoder.part(buffer.layer, "mlp_norm"), self._first_argument(buffer, "stream"), hooks)
        if outputs_of_router := [(name, index) for index, name in enumerate(ROUTER) if name in wanted]:

            def capture_router(out: tuple[Any, ...]) -> None:
                for name, index in outputs_of_router:
                    buffer.put(name, out[index])

            self._after(self.decoder.part(buffer.layer, "router"), capture_router, hooks)
        experts = (("routed", "experts"), ("shared", "shared_expert"), ("shared_gate", "shared_expert_gate"))
        for name, word in experts:
            if name in wanted:
                self._after(self.decoder.part(buffer.layer, word), self._output(buffer, name), hooks)
        wanted.update({name: FLAT for name in (*ROUTER, *(name for name, _ in experts)) if name in wanted})
        self._after(self.decoder.part(buffer.layer, "mlp"), self._finish(buffer), hooks)

    def _first_argument(self, buffer: CaptureBuffer, name: str) -> Callback:
        return lambda args: buffer.put(name, args[0])

    def _output(self, buffer: CaptureBuffer, name: str) -> Callback:
        return lambda out: buffer.put(name, out)

    def _finish(self, buffer: CaptureBuffer) -> Callback:
        """Return the hook that runs after a part: it captures the output and delivers the buffer."""
        part, wanted = buffer.part, buffer.part in buffer.wanted

        def finish(out: Any) -> None:
            self._end_mixer()
            if wanted:
                buffer.put(part, out[0] if isinstance(out, tuple) else out)
            self.deliver(buffer)

        return finish

    def _before(self, module: nn.Module, capture: Callback, hooks: ExitStack) -> None:
        def hook(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._thread == get_ident():
                capture((*args, *kwargs.values()) if kwargs else args)

        hooks.enter_context(inputs(module, hook))

    def _after(
        self, module: nn.Module, capture: Callback, hooks: ExitStack, start: Callable[[], None] | None = None
    ) -> None:
        def hook(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if self._thread == get_ident():
                capture(out)

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._thread == get_ident() and start is not None:
                start()

        hooks.enter_context(outputs(module, hook, before=before if start else None))

    def _begin_mixer(self, buffer: CaptureBuffer, key_heads: int) -> Callable[[], None]:
        def begin() -> None:
            self._deltanet = buffer
            self.rule.begin(buffer.layer, key_heads)

        return begin

    def _end_mixer(self) -> None:
        self._deltanet = None
        self.rule.end()

    def _capture_rule(self, call: DeltaRuleCall) -> None:
        if self._thread == get_ident() and self._deltanet is not None:
            self._deltanet.captured["rule"] = call

    def _hook_attention(self, hooks: ExitStack) -> None:
        """Wrap the attention implementation in use where it is looked up; masks and kernels stay as they are."""
        modeling = sys.modules[self.decoder.family.modeling]
        functions, name = modeling.ALL_ATTENTION_FUNCTIONS, self.decoder.module.config._attn_implementation
        if name in functions:
            hooks.enter_context(listening(functions._local_mapping, name, functions[name], self._capture_attention))
        else:  # "eager" is a function of each modeling file
            eager = "eager_attention_forward"
            hooks.enter_context(listening(vars(modeling), eager, getattr(modeling, eager), self._capture_attention))

    def _capture_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        call = dict(zip(("module", "query", "key", "value", "attention_mask"), args, strict=False)) | kwargs
        buffer = self._attention.get(id(call["module"])) if self._thread == get_ident() else None
        if buffer is not None:
            _reject_sliding_window(call)
            query, key = constant(call["query"]), constant(call["key"])
            scaling = call.get("scaling") or query.shape[-1] ** -0.5
            value = constant(call["value"]) if buffer.layer in self.value_layers else None
            visible = mask_of_intervention(call["module"], call["attention_mask"])
            buffer.captured["attention"] = AttentionCall(query, key, scaling, value, visible)


def _reject_sliding_window(call: dict[str, Any]) -> None:
    """Reject sliding-window flash attention: without a mask we cannot know which keys are visible."""
    if call.get("sliding_window") is not None:
        raise CannotWatch(
            "The attention function gets a sliding window instead of a mask, so attention probes cannot know which "
            "keys are visible.\n"
            'Use masks, with model.set_attn_implementation("sdpa"), or leave Attention and SoftmaxAttention out.'
        )
