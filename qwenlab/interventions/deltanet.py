"""Edits of what DeltaNet layers remember: their states, the rule that writes them, and the convolution before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from transformers.cache_utils import Cache

from qwenlab.capture.active import replaced_by, replacing
from qwenlab.capture.rounding import check_format, round_in_place
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.call_arguments import RuleArguments
from qwenlab.interventions.layers import HeadIntervention, LayerIntervention, whole_number
from qwenlab.interventions.linear_attention import gated_linear_attention
from qwenlab.interventions.module_sites import LEAST_DECAY, InterventionPoints
from qwenlab.interventions.segments import Segments, run_in_segments, worth_cutting


@dataclass(frozen=True)
class FreezeState(HeadIntervention):
    """States that are written by the first tokens of a sequence only, and then neither change nor fade.

    From the token at position `after` on, alpha is 1 and beta 0: queries read what the tokens before left. The
    convolution still mixes neighbours. Site: the arguments of the delta rule.

    Cache: the state that is kept is the one of the first `after` tokens, however many follow.

    after          how many tokens write, 0 or more
    layers, heads  only these; heads are value heads
    """

    mixer: ClassVar[str] = DELTANET
    after: int

    def __post_init__(self) -> None:
        """Raises BadArgument for a number of tokens that is none."""
        super().__post_init__()
        whole_number(self.after, 0, "FreezeState(after=...)")

    def place(self, places: InterventionPoints) -> None:
        """At the delta rule of each layer. Raises NothingToProbe, UnknownLayer and BadArgument."""
        for layer in self.chosen(places):
            places.rule(layer, f"layers.{layer}.mixer, its delta rule", self._frozen)

    def _frozen(self, call: RuleArguments, reading: TokenBatch) -> RuleArguments | None:
        late = _some(reading, (FreezeState, self.after), lambda: reading.real & (reading.position >= self.after))
        if late is None:
            return None
        meant = late[..., None] & self.these(call.g.shape[2], call.at)
        return call.but(g=torch.where(meant, 0, call.g), beta=torch.where(meant, 0, call.beta))


@dataclass(frozen=True)
class ResetState(HeadIntervention):
    """States that are emptied before every so many tokens of a sequence: what was written longer ago is forgotten.

    Before the tokens at positions `every`, 2 `every`, ... the state is decayed to nothing. Where such tokens stand
    closer than 64 apart, the segments that they begin are given to the kernel side by side: chunked kernels sum the ln
    of decays, and large ones take digits from the rest. Site: the arguments of the delta rule.

    Cache: the state that is kept holds the tokens since the newest emptying.

    every          tokens from one emptying to the next, 1 or more
    layers, heads  only these; heads are value heads
    """

    mixer: ClassVar[str] = DELTANET
    every: int

    def __post_init__(self) -> None:
        """Raises BadArgument for a number of tokens that is none."""
        super().__post_init__()
        whole_number(self.every, 1, "ResetState(every=...)")

    def place(self, places: InterventionPoints) -> None:
        """At the delta rule of each layer. Raises NothingToProbe, UnknownLayer and BadArgument."""
        for layer in self.chosen(places):
            mixer: Any = places.decoder.mixer(layer)
            places.rule(layer, f"layers.{layer}.mixer, its delta rule", self._emptied)
            places.rule_itself(layer, None, partial(self._in_segments, mixer.num_k_heads))

    def _emptied(self, call: RuleArguments, reading: TokenBatch) -> RuleArguments | None:
        begin = self._begins(reading)
        if begin is None:
            return None
        meant = begin[..., None] & self.these(call.g.shape[2], call.at)
        return call.but(g=torch.where(meant, _LEAST, call.g))

    def _in_segments(
        self,
        key_heads: int,
        rule: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reading: TokenBatch,
    ) -> Any:
        """The same to more digits; None where none are to be won, or another edit has changed or cut the call since."""
        if not reading.once((worth_cutting, self.every), lambda: worth_cutting(reading, self.every)):
            return None
        call, begin = RuleArguments.of(args, kwargs, key_heads), self._begins(reading)
        if call.g.shape[:2] != begin.shape:
            return None
        heads = self.these(call.g.shape[2], call.at)
        meant = begin[..., None] & heads
        if bool((torch.where(meant, call.g, _LEAST) > _LEAST).any()):
            return None
        segments = reading.once((Segments, self.every), lambda: Segments.of(reading, self.every))
        call = call.but(g=torch.where(meant, 0, call.g))  # an empty state has nothing to lose
        if self.heads is None:
            return run_in_segments(rule, call, kwargs, segments)
        out, after = rule(*args, **kwargs)
        which = heads.nonzero()[:, 0]
        initial = kwargs.get("initial_state")
        initial = None if initial is None else initial[:, which]
        own = call.of_heads(which)
        own_out, own_after = run_in_segments(rule, own, kwargs | {"initial_state": initial}, segments)
        out = out.index_copy(2, which, own_out)
        if after is None or own_after is None:
            return out, None
        return out, after.index_copy(1, which, own_after.to(after.dtype))

    def _begins(self, reading: TokenBatch) -> Any:
        """bool [batch, position]: the tokens before which states are emptied; None where there is none."""

        def find() -> torch.Tensor:
            return reading.real & (reading.position % self.every == 0) & (reading.position > 0)

        return _some(reading, (ResetState, self.every), find)


_LEAST = float(torch.tensor(LEAST_DECAY).log())


@dataclass(frozen=True)
class NoKeyRemoval(LayerIntervention):
    """Gated linear attention in the place of the gated delta rule: what a key held is not taken away by new writes.

        S_t = alpha_t S_(t-1) + beta_t k_t v_t^T

    in the place of  S_t = alpha_t S_(t-1) + beta_t k_t (v_t - alpha_t S_(t-1)^T k_t)^T,  with the layer's own alpha,
    beta, v and L2-normalised q and k; in torch, float32 (`gated_linear_attention`). Site: the delta rule itself.

    Cache: the state that is kept is that of this rule; it is of another size than the delta rule's, and a cache begun
    under one rule does not go on well under the other.

    layers  only these layers
    """

    mixer: ClassVar[str] = DELTANET

    def place(self, places: InterventionPoints) -> None:
        """Replace each layer's delta rule. Raises NothingToProbe, UnknownLayer, CannotIntervene for a second one."""
        layers = self.chosen(places)
        if first := replaced_by(places.decoder.module, "rule", layers):
            raise CannotIntervene(
                f"{self}: {first} stands in the place of the delta rule already, and a layer has one rule.\n"
                "Leave one of them out, or give them layers of their own."
            )
        for layer in layers:
            mixer: Any = places.decoder.mixer(layer)
            places.rule_itself(layer, f"layers.{layer}.mixer, its delta rule", partial(_added_up, mixer.num_k_heads))
        places.hooks.enter_context(replacing(places.decoder.module, "rule", str(self), layers))


def _added_up(
    key_heads: int, rule: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], reading: TokenBatch
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gated linear attention, called as transformers calls the delta rule."""
    call = RuleArguments.of(args, kwargs, key_heads)
    normalise = bool(kwargs.get("use_qk_l2norm_in_kernel", False))
    out, state = gated_linear_attention(call, kwargs.get("initial_state"), normalise=normalise)
    return out, state if kwargs.get("output_final_state", False) else None


@dataclass(frozen=True)
class NoConv(LayerIntervention):
    """The causal convolution before the delta rule, reduced to the token itself: q, k and v know no earlier token.

    The weights of earlier taps count as 0; that of the token's own tap, and the silu behind it, stay. Site: the weights
    that the layer hands to its convolution.

    Cache: the last columns are kept as ever, and not looked at.

    layers  only these layers
    """

    mixer: ClassVar[str] = DELTANET

    def place(self, places: InterventionPoints) -> None:
        """At the convolution of each layer. Raises NothingToProbe and UnknownLayer."""
        for layer in self.chosen(places):
            places.convolution(layer, f"layers.{layer}.mixer, its convolution", _own_tap)


def _own_tap(weight: torch.Tensor, reading: TokenBatch) -> torch.Tensor:
    """Weights [channel, tap] of the last tap alone."""
    return torch.nn.functional.pad(weight[:, -1:], (weight.shape[1] - 1, 0))


@dataclass(frozen=True)
class StateDtype(LayerIntervention):
    """States kept in low precision between forward passes. Site: the cache.

    After every pass the states that it left in its cache are rounded (`precision.rounded`), and the next pass begins
    with those: in a decode that is after every token, in a prefill after its last, in drafted decoding after every
    block. Within a pass the kernel works as it does. The memory they take stays the same: this shows what a format does
    to the logits and to the loss, not what it saves. A pass without a cache is not changed.

    format  one of `precision.FORMATS`: "bfloat16", "float8_e4m3", "int8"
    layers  only these layers
    """

    mixer: ClassVar[str] = DELTANET
    format: str

    def __post_init__(self) -> None:
        """Raises BadArgument for another format."""
        super().__post_init__()
        check_format(self.format, f"StateDtype({self.format!r})")

    def place(self, places: InterventionPoints) -> None:
        """At the cache that a pass leaves. Raises NothingToProbe and UnknownLayer."""
        layers = self.chosen(places)
        places.cache("the cache", partial(_rounded, layers, self.format))
        places.hooks.enter_context(replacing(places.decoder.module, "states", str(self), layers))


def _rounded(layers: Sequence[int], format: str, cache: Cache) -> None:
    for layer in layers:
        round_in_place(cache.layers[layer], format)


def _some(reading: TokenBatch, name: Any, find: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Tokens, found once for all layers; None where there are none."""

    def ask() -> torch.Tensor | None:
        found = find()
        return found if bool(found.any()) else None

    return reading.once(name, ask)
