"""The tap on the gated delta rule: what a DeltaNet layer hands to its kernel, whichever kernel that is.

A layer calls `torch_chunk_gated_delta_rule` or `torch_recurrent_gated_delta_rule` through its module's globals, without
naming itself. While a tap lives those two names are wrapped, and the layer says before it runs that it is the one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.families import Family
from qwenlab.probe.reading import Reading

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class RuleCall:
    """One call of the delta rule by one layer, and what its state predicted for some of the heads.

    key, value   [batch, position, key head, channel], [batch, position, head, channel], as the kernel got them
    g, beta      [batch, position, head]: ln of the decay, write strength
    predicted    [batch, position, sampled head, channel]: S^T k, S the state decayed and not yet written to
    state_norm   [batch, 1 or position, sampled head]: Frobenius norm of the state after the last (or each) real token
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
        return tuple(self.g.shape)

    def settle(self, reading: Reading) -> RuleCall:
        """Work out `predicted` and `state_norm`, and let go of the states.

        The layer's own kernel is asked: with each next key as the query it returns k[t+1]^T S[t], which only has to be
        decayed once more to be the prediction. Padding is passed over (alpha 1, beta 0), so that the state it ends with
        is that after the last real token.
        """
        if len(self.heads):
            group = self.value.shape[2] // self.key.shape[2]
            key = self.key[:, :, self.heads // group].float()
            g = torch.where(reading.real[..., None], self.g[:, :, self.heads].float(), 0)
            unit = normalised(key)
            if key.shape[1] == 1 and self.initial is not None and self.final is not None:
                self.predicted = torch.einsum("bthk,bhkv->bthv", unit, self.initial.float()) * g.exp()[..., None]
                self.state_norm = torch.linalg.vector_norm(self.final[:, self.heads].float(), dim=(-2, -1))[:, None]
            else:
                self.predicted, state = self._foresee(reading, key, g, unit)
                self.state_norm = torch.linalg.vector_norm(state.float(), dim=(-2, -1))[:, None]
        self.initial = self.final = None
        return self

    def _foresee(
        self, reading: Reading, key: torch.Tensor, g: torch.Tensor, unit: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        value = self.value[:, :, self.heads].float()
        beta = torch.where(reading.real[..., None], self.beta[:, :, self.heads].float(), 0)
        following = torch.cat([key[:, 1:], torch.zeros_like(key[:, :1])], dim=1)
        read, state = self.chunk_rule(
            following,
            key,
            value,
            g=g,
            beta=beta,
            initial_state=self.initial,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        first = torch.zeros_like(value[:, :1])
        if self.initial is not None:
            first = torch.einsum("bhk,bhkv->bhv", unit[:, 0], self.initial.float())[:, None]
        read = torch.cat([first, read[:, :-1] * key.shape[-1] ** 0.5], dim=1)
        assert state is not None
        return read * g.exp()[..., None], state

    @staticmethod
    def joined(calls: list[RuleCall]) -> RuleCall:
        """Settled decode steps that follow one another, as one call."""

        def cat(name: str) -> torch.Tensor | None:
            parts = [getattr(call, name) for call in calls]
            return None if parts[0] is None else torch.cat(parts, dim=1)

        joined = {name: cat(name) for name in ("key", "value", "g", "beta", "predicted", "state_norm")}
        return RuleCall(**joined, initial=None, final=None, chunk_rule=calls[0].chunk_rule, heads=calls[0].heads)  # type: ignore[arg-type]


def normalised(key: torch.Tensor) -> torch.Tensor:
    """Keys [..., channel] in float32 and of length 1, as the kernels make them (eps 1e-6 under the root)."""
    key = key.float()
    return key * torch.rsqrt(key.square().sum(dim=-1, keepdim=True) + 1e-6)


class _Wrapped:
    """The two delta rules of one modeling module, wrapped for as long as any tap listens."""

    def __init__(self, family: Family) -> None:
        self.module = sys.modules[family.modeling]
        self.names = (family.chunk_rule, family.recurrent_rule)
        self.originals: dict[str, Rule] = {name: getattr(self.module, name) for name in self.names}
        self.listeners: list[Callable[[inspect.BoundArguments | Any, Any], None]] = []
        for name in self.names:
            setattr(self.module, name, self._wrapper(self.originals[name]))

    def _wrapper(self, original: Rule) -> Rule:
        def delta_rule(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            result = original(*args, **kwargs)
            for listener in self.listeners:
                listener((args, kwargs), result)
            return result

        return delta_rule

    def restore(self) -> None:
        for name in self.names:
            setattr(self.module, name, self.originals[name])


_wrapped: dict[str, _Wrapped] = {}


@contextmanager
def _listening(family: Family, listener: Callable[[Any, Any], None]) -> Any:
    """Hear every call of the family's delta rules; the wrapping goes with the last listener, in whatever order they leave."""
    wrapped = _wrapped.get(family.modeling)
    if wrapped is None:
        wrapped = _wrapped[family.modeling] = _Wrapped(family)
    wrapped.listeners.append(listener)
    try:
        yield wrapped
    finally:
        wrapped.listeners.remove(listener)
        if not wrapped.listeners:
            wrapped.restore()
            del _wrapped[family.modeling]


class RuleTap:
    """Delivers the delta-rule calls of chosen layers: `deliver(layer, RuleCall)`."""

    def __init__(self, family: Family, deliver: Callable[[int, RuleCall], None]) -> None:
        self.family, self.deliver = family, deliver
        self.speaking: tuple[int, nn.Module] | None = None
        self.heads: dict[int, torch.Tensor] = {}
        self.kernels: set[str] = set()

    def listening(self) -> AbstractContextManager[_Wrapped]:
        """While this context lives the tap hears its layers."""
        return _listening(self.family, self._hear)

    def announce(self, layer: int, module: nn.Module) -> None:
        """This layer's mixer is about to run."""
        self.speaking = (layer, module)

    def hush(self) -> None:
        """No layer of ours is running."""
        self.speaking = None

    def _hear(self, given: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> None:
        if self.speaking is None:
            return
        layer, module = self.speaking
        args, kwargs = given
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        key, value, initial = named["key"], named["value"], named.get("initial_state")
        repeated = key.shape[2] // module.num_k_heads  # transformers 5.17 repeats key heads before the call
        heads = self.heads[layer] = self.heads[layer].to(key.device)
        if initial is not None and len(heads):
            initial = initial[:, heads].clone()  # the cache writes the next state into the same memory
        elif not len(heads):
            initial = None
        wrapped = _wrapped[self.family.modeling]
        self.deliver(
            layer,
            RuleCall(
                key[:, :, ::repeated],
                value,
                named["g"],
                named["beta"],
                initial,
                result[1],
                wrapped.originals[self.family.chunk_rule],
                heads,
            ),
        )


def kernel_of(family: Family) -> str:
    """Which implementation transformers picked for the chunked delta rule: a package's function, or its torch reference."""
    rule = getattr(sys.modules[family.modeling], family.chunk_rule)
    if family.modeling in _wrapped:
        rule = _wrapped[family.modeling].originals[family.chunk_rule]
    chosen = inspect.getclosurevars(inspect.unwrap(rule, stop=lambda f: "implementation" in f.__code__.co_freevars)).nonlocals
    implementation = chosen.get("implementation", rule)
    return f"{implementation.__module__}.{implementation.__name__}"
