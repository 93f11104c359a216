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
from typing import Any

import torch

from qwenlab.checkpoint.families import Family
from qwenlab.probe.reading import Reading
from qwenlab.probe.wrapping import listening, unwrapped

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class RuleCall:
    """One call of the delta rule by one layer, and what its state predicted for some of the heads.

    key, value      [batch, position, key head, channel], [batch, position, head, channel], as the kernel got them
    g, beta         [batch, position, head]: ln of the decay, write strength
    initial, final  [batch, sampled head, key channel, channel], the state before and after; None where there is none
    heads           int [sampled head]: the heads asked for their prediction
    predicted       [batch, position, sampled head, channel]: S^T k, S the state decayed and not yet written to
    state_norm      [batch, 1 or position, sampled head]: Frobenius norm of the state after the last real token, or each
    """

    key: torch.Tensor
    value: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    initial: torch.Tensor | None
    final: torch.Tensor | None
    chunk_rule: Rule
    heads: torch.Tensor
    predicted: torch.Tensor | None = None
    state_norm: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position, head]"""
        return tuple(self.g.shape)

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.g.device

    def settle(self, reading: Reading) -> RuleCall:
        """Work out `predicted` and `state_norm`, and let go of the states.

        The layer's own kernel is asked: with each next key as the query it returns k[t+1]^T S[t], which only has to be
        decayed once more to be the prediction. Padding is passed over (alpha 1, beta 0), so that the state it ends with
        is that after the last real token.
        """
        if len(self.heads):
            group = self.value.shape[2] // self.key.shape[2]
            key = self.key[:, :, self.heads // group]
            g = torch.where(reading.real[..., None], self.g[:, :, self.heads].float(), 0)
            if key.shape[1] == 1 and self.initial is not None and self.final is not None:
                self.predicted = _read(self.initial, key) * g.exp()[..., None]
                state = self.final
            else:
                self.predicted, state = self._foresee(reading, key, g)
            self.state_norm = torch.linalg.vector_norm(state.float(), dim=(-2, -1))[:, None]
        self.initial = self.final = None
        return self

    def _foresee(self, reading: Reading, key: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # On a GPU the kernel may take nothing but the layer's own dtype; torch's reference works in float32 anyway.
        dtype = key.dtype if key.is_cuda else torch.float32
        key, value, beta = (
            tensor.to(dtype) for tensor in (key, self.value[:, :, self.heads], self.beta[:, :, self.heads])
        )
        following = torch.cat([key[:, 1:], torch.zeros_like(key[:, :1])], dim=1)
        read, state = self.chunk_rule(
            following,
            key,
            value,
            g=g,
            beta=torch.where(reading.real[..., None], beta, 0),
            initial_state=self.initial,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        assert state is not None
        first = torch.zeros_like(value[:, :1]) if self.initial is None else _read(self.initial, key[:, :1])
        read = torch.cat([first.float(), read[:, :-1].float() * key.shape[-1] ** 0.5], dim=1)
        return read * g.exp()[..., None], state

    @staticmethod
    def joined(calls: list[RuleCall]) -> RuleCall:
        """Settled decode steps that follow one another, as one call."""

        def cat(name: str) -> torch.Tensor:
            return torch.cat([getattr(call, name) for call in calls], dim=1)

        settled = calls[0].predicted is not None
        joined = {name: cat(name) for name in ("key", "value", "g", "beta")}
        predicted = {name: cat(name) for name in ("predicted", "state_norm") if settled}
        return RuleCall(
            **joined, **predicted, initial=None, final=None, chunk_rule=calls[0].chunk_rule, heads=calls[0].heads
        )


def normalised(key: torch.Tensor) -> torch.Tensor:
    """Keys [..., channel] in float32 and of length 1, as the kernels make them (eps 1e-6 under the root)."""
    key = key.float()
    return key * torch.rsqrt(key.square().sum(dim=-1, keepdim=True) + 1e-6)


def _read(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What a state [batch, head, key channel, channel] holds under keys [batch, position, head, key channel]."""
    return (normalised(key).transpose(1, 2) @ state.float()).transpose(1, 2)


class RuleTap:
    """Hears the delta-rule calls of the layers it is told of, and delivers each as a `RuleCall`.

    heads  by layer, int [sampled head]: the value heads whose prediction is asked for
    """

    def __init__(self, family: Family, deliver: Callable[[RuleCall], None]) -> None:
        self.heads: dict[int, torch.Tensor] = {}
        self._family, self._deliver = family, deliver
        self._speaking: tuple[int, Any] | None = None

    def listen(self, hooks: ExitStack) -> None:
        """Hear every call of the family's two rules until `hooks` closes."""
        names = vars(sys.modules[self._family.modeling])
        self._chunk_rule = unwrapped(names, self._family.chunk_rule)
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
        heads = self.heads[layer] = self.heads.get(layer, torch.empty(0, dtype=torch.long)).to(key.device)

        def sampled(state: torch.Tensor | None) -> torch.Tensor | None:
            # A copy: the cache writes the next state into the same memory.
            return None if state is None or not len(heads) else state.detach()[:, heads]

        initial, final = sampled(given.get("initial_state")), sampled(result[1])
        self._deliver(RuleCall(key[:, :, ::repeated], value, g, beta, initial, final, self._chunk_rule, heads))


def kernel_of(family: Family) -> str:
    """Which implementation of the chunked delta rule transformers picked: a package's, or its torch reference."""
    rule = unwrapped(vars(sys.modules[family.modeling]), family.chunk_rule)
    # Every wrapper of transformers names the function below it; the one that chose keeps its choice as a closure.
    choosing = inspect.unwrap(rule, stop=lambda function: "implementation" in function.__code__.co_freevars)
    chosen = inspect.getclosurevars(choosing).nonlocals.get("implementation", choosing)
    return f"{chosen.__module__}.{chosen.__name__}"
