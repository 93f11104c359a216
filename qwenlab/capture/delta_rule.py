"""Hook on the gated delta rule: captures the arguments and results of a DeltaNet layer's kernel, whichever it is.

A layer calls `torch_chunk_gated_delta_rule` or `torch_recurrent_gated_delta_rule` through its module's globals, and the
call does not identify the layer. The hook wraps those two names and records which layer is running.
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
    """One call of the delta rule by one layer, or consecutive decode steps joined into one call.

    key, value      [batch, position, key head, channel], [batch, position, head, channel], as passed to the kernel
    g, beta         [batch, position, head]: ln of the decay, write strength
    initial, final  [batch, sampled head, key channel, channel]: states before the first token and after the last, as
                    passed to and returned by the kernel; None where empty or not known
    heads           int [sampled head]: the heads whose prediction is measured; None where none is
    query, out      [batch, position, key head, channel], [batch, position, head, channel]: argument and result of the
                    kernel; only for layers whose map is measured
    mapped_initial  [batch, mapped head, key channel, channel]: state before the first token; only for the same layers
    all_initial, all_final  [batch, head, key channel, channel]: as initial and final, for all heads; only for layers
                    whose states are measured
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
    mapped_initial: torch.Tensor | None = None
    all_initial: torch.Tensor | None = None
    all_final: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position, head]"""
        return tuple(self.g.shape)

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.g.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the number of tokens."""
        tensors = (self.key, self.value, self.g, self.beta, self.query, self.out)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def predict(self, heads: torch.Tensor, tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sampled heads' prediction of each value, and their state after each row's last real token.

        Padding leaves the state unchanged (alpha 1, beta 0), so the final state is that after the last real token.

        returns  [batch, position, sampled head, channel] and [batch, sampled head, key channel, channel]
        """
        return predictions(*self.of_heads(heads, tokens), self.initial)

    def of_heads(
        self, heads: torch.Tensor, tokens: TokenBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return normalised keys, values, g and beta of these value heads, each [batch, position, these heads, ...].

        Those of padding are 0, so that padding leaves the state unchanged (alpha 1, beta 0).
        """
        key = self.key.index_select(2, heads // (self.value.shape[2] // self.key.shape[2]))
        value, g, beta = (tensor.index_select(2, heads) for tensor in (self.value, self.g, self.beta))
        key, value, g, beta = (tokens.masked(tensor) for tensor in (normalised(key), value, g, beta))
        return key, value, g, beta

    @staticmethod
    def joined(calls: list[DeltaRuleCall]) -> DeltaRuleCall:
        """Join consecutive decode steps into one call."""
        key, value, g, beta = (
            torch.cat([getattr(call, name) for call in calls], dim=1) for name in ("key", "value", "g", "beta")
        )
        joined = DeltaRuleCall(key, value, g, beta, calls[0].initial, calls[-1].final, calls[0].heads)
        joined.query, joined.out = _joined(calls, "query"), _joined(calls, "out")
        joined.mapped_initial = calls[0].mapped_initial
        joined.all_initial, joined.all_final = calls[0].all_initial, calls[-1].all_final
        return joined


class DeltaRuleHook:
    """Captures the delta-rule calls of layers that announce themselves, and delivers each as a `DeltaRuleCall`.

    predicted_heads  by layer, int [sampled head]: the value heads whose prediction is measured
    mapped_heads     by layer, int [mapped head]: the value heads whose map is measured
    state_layers     layers whose states are captured for all heads
    captured_states  which states to capture: "both"; only the "initial" one, at the first of several decode steps; or
                     none (""), where the initial state is the final state of the step before
    """

    def __init__(self, family: Family, deliver: Callable[[DeltaRuleCall], None]) -> None:
        self.predicted_heads: dict[int, torch.Tensor] = {}
        self.mapped_heads: dict[int, torch.Tensor] = {}
        self.state_layers: frozenset[int] = frozenset()
        self.captured_states: Literal["both", "initial", ""] = "both"
        self._family, self._deliver = family, deliver
        self._running: RunningLayer[tuple[int, int]] = RunningLayer()

    def listen(self, hooks: ExitStack) -> None:
        """Capture every call of the family's two rules until `hooks` closes."""
        names = vars(sys.modules[self._family.modeling])
        for name in (self._family.chunk_rule, self._family.recurrent_rule):
            hooks.enter_context(listening(names, name, names[name], self._capture))

    def begin(self, layer: int, key_heads: int) -> None:
        """Mark the mixer of this layer, with this number of key heads, as running."""
        self._running.begin((layer, key_heads))

    def end(self) -> None:
        """Mark that no mixer is running."""
        self._running.end()

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (running := self._running.layer) is None:
            return
        layer, key_heads = running
        key, value = args[1:3] if len(args) > 2 else (kwargs["key"], kwargs["value"])
        g, beta = args[3:5] if len(args) > 4 else (kwargs["g"], kwargs["beta"])
        repeated = key.shape[2] // key_heads  # transformers 5.17 repeats key heads before the call
        key = key if repeated == 1 else key[:, :, ::repeated]
        heads, initial, final = self.predicted_heads.get(layer), None, None
        if heads is not None:
            heads = self.predicted_heads[layer] = heads.to(key.device)
            initial = _sampled(kwargs.get("initial_state"), heads) if self.captured_states else None
            final = _sampled(result[1], heads) if self.captured_states == "both" else None
        call = DeltaRuleCall(constant(key), constant(value), constant(g), constant(beta), initial, final, heads)
        if layer in self.mapped_heads:
            mapped = self.mapped_heads[layer] = self.mapped_heads[layer].to(key.device)
            query = args[0] if args else kwargs["query"]
            call.query = constant(query if repeated == 1 else query[:, :, ::repeated])
            call.out = constant(result[0])
            call.mapped_initial = _sampled(kwargs.get("initial_state"), mapped) if self.captured_states else None
        if layer in self.state_layers:
            call.all_initial = _copied(kwargs.get("initial_state")) if self.captured_states else None
            call.all_final = _copied(result[1]) if self.captured_states == "both" else None
        self._deliver(call)


def constant(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its graph."""
    return tensor.detach() if tensor.requires_grad else tensor


def _joined(calls: list[DeltaRuleCall], name: str) -> torch.Tensor | None:
    """Join one tensor of decode steps along positions; None where the steps lack it."""
    tensors = [getattr(call, name) for call in calls]
    return None if tensors[0] is None else torch.cat(tensors, dim=1)


def _copied(state: torch.Tensor | None) -> torch.Tensor | None:
    return None if state is None else state.detach().clone()


def _sampled(state: torch.Tensor | None, heads: torch.Tensor) -> torch.Tensor | None:
    """Copy the states of some heads, since the cache writes the next state into the same memory."""
    return None if state is None else state.detach().index_select(1, heads)


def kernel_of(decoder: Decoder) -> str:
    """Return the name of the chunked delta rule that the DeltaNet layers call: a package's kernel, or torch's own.

    Both names, sorted, for a model with layers on the CPU and on a GPU where fused kernels are installed; "none" for a
    model without DeltaNet layers.
    """
    devices = {_device_of(decoder.mixer(layer)) for layer in decoder.layers_of(DELTANET)}
    return ", ".join(sorted({kernel_on(device, decoder.family) for device in devices})) or "none"


def kernel_on(device: str, family: Family) -> str:
    """Return the name of the chunked delta rule that layers on this type of device call."""
    chosen = implementation(vars(sys.modules[family.modeling])[family.chunk_rule], device)
    return f"{chosen.__module__}.{chosen.__name__}"


def _device_of(mixer: nn.Module) -> str:
    """Return the type of device that a mixer runs on; accelerate moves offloaded weights there for each call."""
    device = next(mixer.parameters()).device
    runs_on = getattr(getattr(mixer, "_hf_hook", None), "execution_device", None)
    return torch.device(runs_on).type if device.type == "meta" and runs_on is not None else device.type
