"""Hooks on one model, gathered layer by layer into notes that probes read when a part of a layer has run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.reading import Reading
from qwenlab.probe.rule import RuleCall, RuleTap

Part = str
PARTS: tuple[Part, ...] = ("mixer", "mlp")


@dataclass
class AttentionCall:
    """One call of the attention function by one layer.

    query    [batch, head, position, channel], rotated and normalised
    key      [batch, key head, past + position, channel]: all keys of the cache, rotated and normalised
    scaling  what the scores are multiplied by
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.query.shape[0], self.query.shape[2]

    @staticmethod
    def joined(calls: list[AttentionCall]) -> AttentionCall:
        """Decode steps that follow one another: the last one's keys hold those of all."""
        return AttentionCall(torch.cat([call.query for call in calls], dim=2), calls[-1].key, calls[-1].scaling)


Note = torch.Tensor | RuleCall | AttentionCall
Notes = dict[str, Note]


def joined(notes: list[Notes]) -> Notes:
    """The notes of decode steps that follow one another, joined along the positions."""
    out: Notes = {}
    for name, first in notes[0].items():
        parts: list[Any] = [note[name] for note in notes]
        out[name] = torch.cat(parts, dim=1) if isinstance(first, torch.Tensor) else type(first).joined(parts)
    return out


class Taps:
    """Places the hooks that the wanted notes need, and hands the notes of a part over once it has run.

    Notes, by part of a layer (all [batch, position, ...]):

    mixer  `stream` residual stream before the mixer · `mixer` its output · `rule` RuleCall or `attention` AttentionCall ·
           `gate` logits of the output gate, [batch, position, head, channel]
    mlp    `stream` before the MLP · `mlp` its output · `router` logits · `weights`, `chosen` of the top k · `routed` output of
           the routed experts · `shared` output of the shared expert · `shared_gate` its logit
    """

    def __init__(self, decoder: Decoder, deliver: Callable[[int, Part, Notes], None]) -> None:
        self.decoder, self.deliver = decoder, deliver
        self.reading: Reading | None = None
        self.rule = RuleTap(decoder.family, self._note_rule)
        self.notes: dict[Part, Notes] = {part: {} for part in PARTS}
        self._attention_layers: dict[int, int] = {}
        self._hooks = ExitStack()

    def close(self) -> None:
        """Take every hook and wrapper away."""
        self._hooks.close()

    def place(self, wanted: dict[tuple[int, Part], set[str]]) -> None:
        """Place the hooks for these notes."""
        if any("rule" in names for names in wanted.values()):
            self._hooks.enter_context(self.rule.listening())
        for (layer, part), names in wanted.items():
            if part == "mixer":
                self._place_mixer(layer, names)
            else:
                self._place_mlp(layer, names)
        if self._attention_layers:
            self._wrap_attention()

    def _place_mixer(self, layer: int, names: set[str]) -> None:
        module, kind = self.decoder.layers[layer], self.decoder.layer_types[layer]
        mixer = self.decoder.part(layer, "mixer")
        if "stream" in names:
            self._before(module, lambda given: self._note("mixer", "stream", given[0]))
        if "rule" in names:
            self._before(mixer, lambda given: self.rule.announce(layer, mixer))
            self._after(mixer, lambda out: self.rule.hush())
        if "attention" in names:
            self._attention_layers[id(mixer)] = layer
        if "gate" in names and kind == DELTANET:
            self._before(mixer.norm, lambda given: self._note_gate(given[1], mixer.head_v_dim))
        elif "gate" in names and kind == ATTENTION:
            # `q_proj` gives each head its query, then its gate.
            self._after(mixer.q_proj, lambda out: self._note_gate(out.unflatten(-1, (-1, 2, mixer.head_dim))[..., 1, :], mixer.head_dim))
        if "mixer" in names:
            self._after(mixer, lambda out: self._note("mixer", "mixer", out))
        self._after(mixer, lambda out: self._hand_over(layer, "mixer"))

    def _place_mlp(self, layer: int, names: set[str]) -> None:
        part = partial(self.decoder.part, layer)
        if "stream" in names:
            self._before(part("mlp_norm"), lambda given: self._note("mlp", "stream", given[0]))
        if "router" in names:
            self._after(part("router"), self._note_router)
        for name, attribute in (("routed", "experts"), ("shared", "shared_expert"), ("shared_gate", "shared_expert_gate")):
            if name in names:
                self._after(part(attribute), partial(self._note_flat, name))
        if "mlp" in names:
            self._after(part("mlp"), lambda out: self._note("mlp", "mlp", out))
        self._after(part("mlp"), lambda out: self._hand_over(layer, "mlp"))

    def _before(self, module: nn.Module, look: Callable[[tuple[Any, ...]], None]) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.reading is not None:
                look((*args, *kwargs.values()))

        self._hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _after(self, module: nn.Module, look: Callable[[Any], None]) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self.reading is not None:
                look(out)

        self._hooks.callback(module.register_forward_hook(hook).remove)

    def _wrap_attention(self) -> None:
        """Wrap the attention implementation in use under its own name, so that masks and kernels stay as they are."""
        name = self.decoder.module.config._attn_implementation
        inner = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
        modeling = sys.modules[self.decoder.family.modeling]
        original = ALL_ATTENTION_FUNCTIONS.get_interface(name, modeling.eager_attention_forward)

        def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.reading is not None and id(module) in self._attention_layers:
                scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
                self.notes["mixer"]["attention"] = AttentionCall(query.detach(), key.detach(), scaling)
            return original(module, query, key, *args, **kwargs)

        def unwrap() -> None:
            if inner is None:
                del ALL_ATTENTION_FUNCTIONS[name]
            else:
                ALL_ATTENTION_FUNCTIONS[name] = inner

        ALL_ATTENTION_FUNCTIONS[name] = attention
        self._hooks.callback(unwrap)

    def _note(self, part: Part, name: str, value: Any) -> None:
        self.notes[part][name] = (value[0] if isinstance(value, tuple) else value).detach()

    def _note_flat(self, name: str, value: torch.Tensor) -> None:
        assert self.reading is not None
        self._note("mlp", name, value.reshape(self.reading.batch, -1, value.shape[-1]))

    def _note_rule(self, layer: int, call: RuleCall) -> None:
        if self.reading is not None:
            self.notes["mixer"]["rule"] = call

    def _note_gate(self, value: torch.Tensor, channels: int) -> None:
        assert self.reading is not None
        self._note("mixer", "gate", value.reshape(self.reading.batch, self.reading.width, -1, channels))

    def _note_router(self, out: tuple[torch.Tensor, ...]) -> None:
        for name, value in zip(("router", "weights", "chosen"), out, strict=True):
            self._note_flat(name, value)

    def _hand_over(self, layer: int, part: Part) -> None:
        notes, self.notes[part] = self.notes[part], {}
        self.deliver(layer, part, notes)


def wanted_notes(requests: Iterable[tuple[int, Part, str]]) -> dict[tuple[int, Part], set[str]]:
    """Requests (layer, part, note) gathered by layer and part."""
    wanted: dict[tuple[int, Part], set[str]] = {}
    for layer, part, name in requests:
        wanted.setdefault((layer, part), set()).add(name)
    return wanted
