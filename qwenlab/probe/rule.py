"""The tap on the gated delta rule: what a DeltaNet layer hands to its kernel, whichever kernel that is.

A layer calls `torch_chunk_gated_delta_rule` or `torch_recurrent_gated_delta_rule` through its module's globals, without
naming itself. While a tap listens those two names are wrapped, and the layer says before it runs that it is the one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch

from qwenlab.checkpoint.families import Family
from qwenlab.probe.prediction import normalised, predictions
from qwenlab.probe.reading import Reading
from qwenlab.probe.wrapping import listening, unwrapped


@dataclass
class RuleCall:
    """One call of the delta rule by one layer, or those of decode steps that follow one another.

    key, value      [batch, position, key head, channel], [batch, position, head, channel], as the kernel got them
    g, beta         [batch, position, head]: ln of the decay, write strength
    initial, final  [batch, sampled head, key channel, channel]: the state before the first token and after the last,
                    as the kernel got and gave it; None where it is empty, or not known
    heads           int [sampled head]: the heads asked for their prediction
    """

    key: torch.Tensor
    value: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    initial: torch.Tensor | None
    final: torch.Tensor | None
    heads: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position, head]"""
        return tuple(self.g.shape)

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.g.device

    def predict(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """What the sampled heads predicted of each value, and their state after each row's last real token.

        Padding is passed over (alpha 1, beta 0), so that the state it ends with is that after the last real token.

        returns  [batch, position, sampled head, channel] and [batch, sampled head, key channel, channel]
        """
        key = self.key.index_select(2, self.heads // (self.value.shape[2] // self.key.shape[2]))
        value, g, beta = (tensor.index_select(2, self.heads) for tensor in (self.value, self.g, self.beta))
        key, value, g, beta = (reading.masked(tensor) for tensor in (normalised(key), value, g, beta))
        return predictions(key, value, g, beta, self.initial)

    @staticmethod
    def joined(calls: list[RuleCall]) -> RuleCall:
        """Decode steps that follow one another, as one call."""
        key, value, g, beta = (
            torch.cat([getattr(call, name) for call in calls], dim=1) for name in ("key", "value", "g", "beta")
        )
        return RuleCall(key, value, g, beta, calls[0].initial, calls[-1].final, calls[0].heads)


class RuleTap:
    """Hears the delta-rule calls of the layers it is told of, and delivers each as a `RuleCall`.

    heads   by layer, int [sampled head]: the value heads whose prediction is asked for
    states  which states these calls are to bring along: "both", the "initial" one of the first of some decode steps, or
            none ("") where the initial state is the one that the step before ended with
    """

    def __init__(self, family: Family, deliver: Callable[[RuleCall], None]) -> None:
        self.heads: dict[int, torch.Tensor] = {}
        self.states: Literal["both", "initial", ""] = "both"
        self._family, self._deliver = family, deliver
        self._speaking: tuple[int, Any] | None = None

    def listen(self, hooks: ExitStack) -> None:
        """Hear every call of the family's two rules until `hooks` closes."""
        names = vars(sys.modules[self._family.modeling])
        for name in (self._family.chunk_rule, self._family.recurrent_rule):
            hooks.enter_context(listening(names, name, names[name], self._hear))

    def announce(self, layer: int, mixer: Any) -> None:
        """This layer's mixer is about to run."""
        self._speaking = (layer, mixer)

    def hush(self) -> None:
        """No layer of ours is running."""
        self._speaking = None

    def _hear(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._speaking is None:
            return
        layer, mixer = self._speaking
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        key, value, g, beta = (given[name].detach() for name in ("key", "value", "g", "beta"))
        repeated = key.shape[2] // mixer.num_k_heads  # transformers 5.17 repeats key heads before the call
        key = key if repeated == 1 else key[:, :, ::repeated]
        heads = self.heads.get(layer)
        if heads is None or heads.device != key.device:
            heads = self.heads[layer] = torch.empty(0, dtype=torch.long) if heads is None else heads.to(key.device)
        initial = _sampled(given.get("initial_state"), heads) if self.states else None
        final = _sampled(result[1], heads) if self.states == "both" else None
        self._deliver(RuleCall(key, value, g, beta, initial, final, heads))


def _sampled(state: torch.Tensor | None, heads: torch.Tensor) -> torch.Tensor | None:
    """A copy of some heads: the cache writes the next state into the same memory."""
    return None if state is None or not len(heads) else state.detach()[:, heads]


def kernel_of(family: Family) -> str:
    """Which implementation of the chunked delta rule transformers picked: a package's, or its torch reference."""
    rule = unwrapped(vars(sys.modules[family.modeling]), family.chunk_rule)
    # Every wrapper of transformers names the function below it; the one that chose keeps its choice as a closure.
    choosing = inspect.unwrap(rule, stop=lambda function: "implementation" in function.__code__.co_freevars)
    chosen = inspect.getclosurevars(choosing).nonlocals.get("implementation", choosing)
    return f"{chosen.__module__}.{chosen.__name__}"
