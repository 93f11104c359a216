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

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.probe.reading import Reading
from qwenlab.probe.rule import RuleCall, RuleTap
from qwenlab.probe.wrapping import listening

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
        """[batch, position]"""
        return self.query.shape[0], self.query.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.query.device

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

    mixer  `stream` residual stream before the mixer · `mixer` its output · `rule` RuleCall or `attention` AttentionCall
           · `gate` logits of the output gate, [batch, position, head, channel]
    mlp    `stream` before the MLP · `mlp` its output · `router` logits · `weights`, `chosen` of the top k · `routed`
           output of the routed experts · `shared` output of the shared expert · `shared_gate` its logit
    """

    def __init__(self, decoder: Decoder, deliver: Callable[[int, Part, Notes], None]) -> None:
        self.decoder, self.deliver = decoder, deliver
        self.reading: Reading | None = None
        self.rule = RuleTap(decoder.family, self._note_rule)
        self.notes: dict[Part, Notes] = {part: {} for part in PARTS}
        self._attention_layers: set[int] = set()

    def begin(self, reading: Reading) -> None:
        """A forward pass begins; what a pass that broke off left is dropped."""
        self.notes = {part: {} for part in PARTS}
        self.rule.hush()
        self.reading = reading

    def end(self) -> None:
        """The forward pass is over: until the next, no hook looks (gradient checkpointing runs layers again)."""
        self.reading = None

    def place(self, wanted: dict[tuple[int, Part], set[str]], hooks: ExitStack) -> None:
        """Place the hooks for these notes, until `hooks` closes."""
        if any("rule" in names for names in wanted.values()):
            self.rule.listen(hooks)
        for (layer, part), names in wanted.items():
            if part == "mixer":
                self._place_mixer(layer, names, hooks)
            else:
                self._place_mlp(layer, names, hooks)
        if self._attention_layers:
            self._listen_to_attention(hooks)

    def _place_mixer(self, layer: int, names: set[str], hooks: ExitStack) -> None:
        mixer = self.decoder.part(layer, "mixer")
        before, after = partial(self._before, hooks), partial(self._after, hooks)
        if "stream" in names:
            before(self.decoder.layers[layer], lambda given: self._note("mixer", "stream", given[0]))
        if "rule" in names:
            before(mixer, lambda given: self.rule.announce(layer, mixer))
            after(mixer, lambda out: self.rule.hush())
        if "attention" in names:
            self._attention_layers.add(id(mixer))
        if "gate" in names and self.decoder.layer_types[layer] == DELTANET:
            shape = (-1, mixer.num_v_heads, mixer.head_v_dim)
            before(mixer.norm, lambda given: self._note_flat("mixer", "gate", given[1].reshape(shape)))
        elif "gate" in names:
            # `q_proj` gives each head its query, then its gate.
            shape = (-1, 2, mixer.head_dim)
            after(mixer.q_proj, lambda out: self._note("mixer", "gate", out.unflatten(-1, shape)[..., 1, :]))
        after(mixer, lambda out: self._hand_over(layer, "mixer", out))

    def _place_mlp(self, layer: int, names: set[str], hooks: ExitStack) -> None:
        part = partial(self.decoder.part, layer)
        if "stream" in names:
            self._before(hooks, part("mlp_norm"), lambda given: self._note("mlp", "stream", given[0]))
        if names & {"router", "weights", "chosen"}:
            self._after(hooks, part("router"), self._note_router)
        routed = (("routed", "experts"), ("shared", "shared_expert"), ("shared_gate", "shared_expert_gate"))
        for name, attribute in routed:
            if name in names:
                self._after(hooks, part(attribute), partial(self._note_flat, "mlp", name))
        self._after(hooks, part("mlp"), lambda out: self._hand_over(layer, "mlp", out))

    def _before(self, hooks: ExitStack, module: nn.Module, look: Callable[[tuple[Any, ...]], None]) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.reading is not None:
                look((*args, *kwargs.values()))

        hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _after(self, hooks: ExitStack, module: nn.Module, look: Callable[[Any], None]) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self.reading is not None:
                look(out)

        hooks.callback(module.register_forward_hook(hook).remove)

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
        given = dict(zip(("module", "query", "key"), args, strict=False)) | kwargs
        if self.reading is not None and id(given["module"]) in self._attention_layers:
            query, key = given["query"].detach(), given["key"].detach()
            scaling = given.get("scaling") or query.shape[-1] ** -0.5
            self.notes["mixer"]["attention"] = AttentionCall(query, key, scaling)

    def _note(self, part: Part, name: str, value: torch.Tensor) -> None:
        self.notes[part][name] = value.detach()

    def _note_flat(self, part: Part, name: str, value: torch.Tensor) -> None:
        """Note a value [batch * position, ...]; as one row where the layer was given other tokens than the model."""
        assert self.reading is not None
        batch = self.reading.batch
        self._note(part, name, value.unflatten(0, (batch, -1)) if len(value) % batch == 0 else value[None])

    def _note_rule(self, call: RuleCall) -> None:
        if self.reading is not None:
            self.notes["mixer"]["rule"] = call

    def _note_router(self, out: tuple[torch.Tensor, ...]) -> None:
        for name, value in zip(("router", "weights", "chosen"), out, strict=True):
            self._note_flat("mlp", name, value)

    def _hand_over(self, layer: int, part: Part, out: Any) -> None:
        """Deliver the notes of a part together with its output, all on the device that it ran on."""
        self._note(part, part, out[0] if isinstance(out, tuple) else out)
        notes, self.notes[part] = self.notes[part], {}
        device = notes[part].device
        # In a split model the stream still comes from the device of the layer before.
        self.deliver(layer, part, {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in notes.items()})


def wanted_notes(requests: Iterable[tuple[int, Part, str]]) -> dict[tuple[int, Part], set[str]]:
    """Requests (layer, part, note) gathered by layer and part."""
    wanted: dict[tuple[int, Part], set[str]] = {}
    for layer, part, name in requests:
        wanted.setdefault((layer, part), set()).add(name)
    return wanted
