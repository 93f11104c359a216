"""The tap on the gated delta rule: what a DeltaNet layer hands to its kernel, whichever kernel that is.

A layer calls `torch_chunk_gated_delta_rule` or `torch_recurrent_gated_delta_rule` through its module's globals, without
naming itself. While a tap listens those two names are wrapped, and the layer says before it runs that it is the one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from qwenlab.capture.prediction import normalised, predictions
from qwenlab.capture.running import RunningLayer
from qwenlab.capture.tokens import TokenBatch
from qwenlab.capture.wrapping import listening
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET, Family
from qwenlab.checkpoint.fused_kernels import implementation


@dataclass
class DeltaRuleCall:
    """One call of the delta rule by one layer, or those of decode steps that follow one another.

    key, value      [batch, position, key head, channel], [batch, position, head, channel], as the kernel got them
    g, beta         [batch, position, head]: ln of the decay, write strength
    initial, final  [batch, sampled head, key channel, channel]: the state before the first token and after the last,
                    as the kernel got and gave it; None where it is empty, or not known
    heads           int [sampled head]: the heads asked for their prediction; None where none is
    query, out      [batch, position, key head, channel], [batch, position, head, channel]: what the kernel got and
                    returned, of layers whose map is asked for
    before          [batch, mapped head, key channel, channel]: the state before the first token, of the same
    entering, leaving  [batch, head, key channel, channel]: as initial and final, of all heads of layers whose states
                    are asked for
    """

    key: torch.Tensor
    value: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    initial: torch.Tensor | None
    final: torch.Tensor | None
    heads: torch.Tensor | None
    query: torch.Tensor | None = None
    out: torch.Tensor | None = None
    before: torch.Tensor | None = None
    entering: torch.Tensor | None = None
    leaving: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position, head]"""
        return tuple(self.g.shape)

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.g.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the tokens."""
        held = (self.key, self.value, self.g, self.beta, self.query, self.out)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def predict(self, heads: torch.Tensor, reading: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the sampled heads predicted of each value, and their state after each row's last real token.

        Padding is passed over (alpha 1, beta 0), so that the state it ends with is that after the last real token.

        returns  [batch, position, sampled head, channel] and [batch, sampled head, key channel, channel]
        """
        return predictions(*self.of_heads(heads, reading), self.initial)

    def of_heads(
        self, heads: torch.Tensor, reading: TokenBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, normalised, values, g and beta of these value heads, each [batch, position, these heads, ...].

        Those of padding are 0: the rule passes over it (alpha 1, beta 0).
        """
        key = self.key.index_select(2, heads // (self.value.shape[2] // self.key.shape[2]))
        value, g, beta = (tensor.index_select(2, heads) for tensor in (self.value, self.g, self.beta))
        key, value, g, beta = (reading.masked(tensor) for tensor in (normalised(key), value, g, beta))
        return key, value, g, beta

    @staticmethod
    def joined(calls: list[DeltaRuleCall]) -> DeltaRuleCall:
        """Decode steps that follow one another, as one call."""
        key, value, g, beta = (
            torch.cat([getattr(call, name) for call in calls], dim=1) for name in ("key", "value", "g", "beta")
        )
        joined = DeltaRuleCall(key, value, g, beta, calls[0].initial, calls[-1].final, calls[0].heads)
        joined.query, joined.out, joined.before = _joined(calls, "query"), _joined(calls, "out"), calls[0].before
        joined.entering, joined.leaving = calls[0].entering, calls[-1].leaving
        return joined


class DeltaRuleHook:
    """Hears the delta-rule calls of the layers it is told of, and delivers each as a `DeltaRuleCall`.

    heads   by layer, int [sampled head]: the value heads whose prediction is asked for, where some are
    mapped  by layer, int [mapped head]: the value heads whose map is asked for, where some are
    stated  layers of which the states of all heads are asked for
    states  which states these calls are to bring along: "both", the "initial" one of the first of some decode steps, or
            none ("") where the initial state is the one that the step before ended with
    """

    def __init__(self, family: Family, deliver: Callable[[DeltaRuleCall], None]) -> None:
        self.heads: dict[int, torch.Tensor] = {}
        self.mapped: dict[int, torch.Tensor] = {}
        self.stated: frozenset[int] = frozenset()
        self.states: Literal["both", "initial", ""] = "both"
        self._family, self._deliver = family, deliver
        self._running: RunningLayer[tuple[int, int]] = RunningLayer()

    def listen(self, hooks: ExitStack) -> None:
        """Hear every call of the family's two rules until `hooks` closes."""
        names = vars(sys.modules[self._family.modeling])
        for name in (self._family.chunk_rule, self._family.recurrent_rule):
            hooks.enter_context(listening(names, name, names[name], self._hear))

    def announce(self, layer: int, key_heads: int) -> None:
        """The mixer of this layer, which has so many key heads, is about to run."""
        self._running.begin((layer, key_heads))

    def hush(self) -> None:
        """No layer of ours is running."""
        self._running.end()

    def _hear(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (running := self._running.layer) is None:
            return
        layer, key_heads = running
        key, value = args[1:3] if len(args) > 2 else (kwargs["key"], kwargs["value"])
        g, beta = args[3:5] if len(args) > 4 else (kwargs["g"], kwargs["beta"])
        repeated = key.shape[2] // key_heads  # transformers 5.17 repeats key heads before the call
        key = key if repeated == 1 else key[:, :, ::repeated]
        heads, initial, final = self.heads.get(layer), None, None
        if heads is not None:
            heads = self.heads[layer] = heads.to(key.device)
            initial = _sampled(kwargs.get("initial_state"), heads) if self.states else None
            final = _sampled(result[1], heads) if self.states == "both" else None
        call = DeltaRuleCall(constant(key), constant(value), constant(g), constant(beta), initial, final, heads)
        if layer in self.mapped:
            mapped = self.mapped[layer] = self.mapped[layer].to(key.device)
            query = args[0] if args else kwargs["query"]
            call.query = constant(query if repeated == 1 else query[:, :, ::repeated])
            call.out = constant(result[0])
            call.before = _sampled(kwargs.get("initial_state"), mapped) if self.states else None
        if layer in self.stated:
            call.entering = _copied(kwargs.get("initial_state")) if self.states else None
            call.leaving = _copied(result[1]) if self.states == "both" else None
        self._deliver(call)


def constant(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its graph."""
    return tensor.detach() if tensor.requires_grad else tensor


def _joined(calls: list[DeltaRuleCall], name: str) -> torch.Tensor | None:
    """One of the tensors of decode steps along the positions, where they have it."""
    held = [getattr(call, name) for call in calls]
    return None if held[0] is None else torch.cat(held, dim=1)


def _copied(state: torch.Tensor | None) -> torch.Tensor | None:
    return None if state is None else state.detach().clone()


def _sampled(state: torch.Tensor | None, heads: torch.Tensor) -> torch.Tensor | None:
    """A copy of some heads: the cache writes the next state into the same memory."""
    return None if state is None else state.detach().index_select(1, heads)


def kernel_of(decoder: Decoder) -> str:
    """The implementation of the chunked delta rule that the DeltaNet layers call: a package's, or torch's own.

    Both, in the order of their names, for a model of which some layers are on the CPU and others on a GPU, where fused
    kernels are installed; "none" for a model without DeltaNet layers.
    """
    devices = {_device_of(decoder.mixer(layer)) for layer in decoder.layers_of(DELTANET)}
    return ", ".join(sorted({kernel_on(device, decoder.family) for device in devices})) or "none"


def kernel_on(device: str, family: Family) -> str:
    """The implementation of the chunked delta rule that layers on this type of device call."""
    chosen = implementation(vars(sys.modules[family.modeling])[family.chunk_rule], device)
    return f"{chosen.__module__}.{chosen.__name__}"


def _device_of(mixer: nn.Module) -> str:
    """The type of device that a mixer runs on; accelerate brings the weights of offloaded ones there for each call."""
    device = next(mixer.parameters()).device
    runs_on = getattr(getattr(mixer, "_hf_hook", None), "execution_device", None)
    return torch.device(runs_on).type if device.type == "meta" and runs_on is not None else device.type
