"""Interventions on DeltaNet: the state, the delta rule that writes it, and the convolution before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import Cache

from qwenlab.arguments import choice
from qwenlab.capture.active import replaced_by, replacing
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.rounding import FORMATS, round_in_place
from qwenlab.capture.tokens import TokenBatch
from qwenlab.errors import CannotIntervene
from qwenlab.interventions.base import HeadIntervention, LayerIntervention, head_mask
from qwenlab.interventions.changes import LEAST_DECAY
from qwenlab.interventions.linear_attention import gated_linear_attention
from qwenlab.interventions.points import InterventionPoints
from qwenlab.interventions.segments import Segments, crowded, run_in_segments


@dataclass(frozen=True)
class RuleIntervention(HeadIntervention):
    """Base class for interventions that change the arguments of the delta rule at some tokens and heads."""

    def place(self, points: InterventionPoints) -> None:
        for layer in self.layers_in(points.decoder):
            points.rule(layer, f"layers.{layer}.mixer, its delta rule", self._change)

    @abstractmethod
    def at(self, tokens: TokenBatch) -> torch.Tensor:
        """bool [batch, position]: the tokens whose arguments change."""

    @abstractmethod
    def new(self, call: DeltaRuleCall, selected: torch.Tensor) -> DeltaRuleCall:
        """The new arguments; `selected` is bool [batch, position, head]."""

    def _change(self, call: DeltaRuleCall, tokens: TokenBatch) -> DeltaRuleCall | None:
        if (at := self._some_at(tokens)) is None:
            return None
        return self.new(call, at[..., None] & head_mask(self.heads, call.g.shape[2], call.device))

    def _some_at(self, tokens: TokenBatch) -> torch.Tensor | None:
        """`at`, computed once for all layers; None where it is empty."""

        def find() -> torch.Tensor | None:
            found = self.at(tokens)
            return found if bool(found.any()) else None

        return tokens.once((self, "at"), find)


@dataclass(frozen=True)
class FreezeState(RuleIntervention):
    """Only the first tokens of a sequence write to the state, which then neither changes nor decays.

    From the token at position `after` on, alpha is 1 and beta 0: queries read the state that the earlier tokens
    left. The convolution still mixes neighbours. Site: the arguments of the delta rule. Cache: it stores the state
    after the first `after` tokens, however many follow.

    after          number of tokens that write, 0 or more
    layers, heads  only these; heads are value heads
    """

    after: int = field(metadata={"unit": "tokens"})

    def at(self, tokens: TokenBatch) -> torch.Tensor:
        return tokens.real & (tokens.position >= self.after)

    def new(self, call: DeltaRuleCall, selected: torch.Tensor) -> DeltaRuleCall:
        return replace(call, g=torch.where(selected, 0, call.g), beta=torch.where(selected, 0, call.beta))


@dataclass(frozen=True)
class ResetState(RuleIntervention):
    """The state is reset to zero every `every` tokens of a sequence: earlier tokens are forgotten.

    Before the tokens at positions `every`, 2 `every`, ... the state is decayed to nothing. Where these tokens are less
    than 64 apart, the kernel gets the segments between them as rows of a batch: chunked kernels sum the ln of decays,
    and large sums cost digits. Site: the arguments of the delta rule. Cache: it stores the state of the tokens since
    the last reset.

    every          tokens between resets, 1 or more
    layers, heads  only these; heads are value heads
    """

    every: int = field(metadata={"least": 1, "unit": "tokens"})

    def place(self, points: InterventionPoints) -> None:
        super().place(points)
        for layer in self.layers_in(points.decoder):
            points.replace_rule(layer, None, self._in_segments)

    def at(self, tokens: TokenBatch) -> torch.Tensor:
        return tokens.real & (tokens.position % self.every == 0) & (tokens.position > 0)

    def new(self, call: DeltaRuleCall, selected: torch.Tensor) -> DeltaRuleCall:
        return replace(call, g=torch.where(selected, _LEAST, call.g))

    def _in_segments(
        self,
        call: DeltaRuleCall,
        rule: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tokens: TokenBatch,
    ) -> Any:
        """The same to more digits; None without a gain, or if another intervention has changed the call since."""
        starts = self._some_at(tokens)
        if starts is None or call.g.shape[:2] != starts.shape:
            return None
        if not tokens.once((crowded, self.every), lambda: crowded(starts, self.every)):
            return None
        heads = head_mask(self.heads, call.g.shape[2], call.device)
        selected = starts[..., None] & heads
        if bool((torch.where(selected, call.g, _LEAST) > _LEAST).any()):
            return None
        segments = tokens.once((Segments, self.every), lambda: Segments.of(tokens, self.every))
        call = replace(call, g=torch.where(selected, 0, call.g))  # a segment starts with an empty state
        if self.heads is None:
            return run_in_segments(rule, call, kwargs, segments)
        out, after = rule(*args, **kwargs)
        indices = heads.nonzero()[:, 0]
        initial = kwargs.get("initial_state")
        initial = None if initial is None else initial[:, indices]
        chosen = call.of_heads(indices)
        chosen_out, chosen_after = run_in_segments(rule, chosen, kwargs | {"initial_state": initial}, segments)
        out = out.index_copy(2, indices, chosen_out)
        if after is None or chosen_after is None:
            return out, None
        return out, after.index_copy(1, indices, chosen_after.to(after.dtype))


_LEAST = float(torch.tensor(LEAST_DECAY).log())


@dataclass(frozen=True)
class NoKeyRemoval(LayerIntervention):
    """Gated linear attention instead of the gated delta rule: writing a key does not remove its old value.

        S_t = alpha_t S_(t-1) + beta_t k_t v_t^T

    instead of  S_t = alpha_t S_(t-1) + beta_t k_t (v_t - alpha_t S_(t-1)^T k_t)^T,  with the layer's own alpha,
    beta, v and L2-normalised q and k; in torch, float32 (`gated_linear_attention`). Site: the delta rule itself.
    Cache: it stores the state of this rule, of another norm than the delta rule's: do not continue a cache of one rule
    under the other.

    layers  only these layers
    """

    def place(self, points: InterventionPoints) -> None:
        layers = self.layers_in(points.decoder)
        if first := replaced_by(points.decoder.module, "rule", layers):
            raise CannotIntervene(
                f"{self}: {first} already replaces the delta rule of one of these layers.\n"
                "Leave one of the two out, or choose different layers for them."
            )
        for layer in layers:
            points.replace_rule(layer, f"layers.{layer}.mixer, its delta rule", _without_removal)
        points.hooks.enter_context(replacing(points.decoder.module, "rule", str(self), layers))


def _without_removal(
    call: DeltaRuleCall, rule: Callable[..., Any], args: Any, kwargs: dict[str, Any], tokens: TokenBatch
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gated linear attention, called as transformers calls the delta rule."""
    normalise = bool(kwargs.get("use_qk_l2norm_in_kernel", False))
    out, state = gated_linear_attention(call, kwargs.get("initial_state"), normalise=normalise)
    return out, state if kwargs.get("output_final_state", False) else None


@dataclass(frozen=True)
class NoConv(LayerIntervention):
    """The causal convolution before the delta rule, reduced to the token itself: q, k and v ignore earlier tokens.

    The weights of earlier taps count as 0; that of the token's own tap, and the silu after it, stay. Site: the weights
    of the convolution. Cache: it stores the last columns as before, and they are not read.

    layers  only these layers
    """

    def place(self, points: InterventionPoints) -> None:
        def own_tap(weight: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
            return torch.nn.functional.pad(weight[:, -1:], (weight.shape[1] - 1, 0))

        for layer in self.layers_in(points.decoder):
            points.convolution(layer, f"layers.{layer}.mixer, its convolution", own_tap)


@dataclass(frozen=True)
class StateDtype(LayerIntervention):
    """States are stored in low precision between forward passes. Site: the cache.

    After every pass the states in its cache are rounded (`rounding.rounded`), and the next pass starts from those:
    after every token of a decode, after the last token of a prefill, after every block of speculative decoding. Within
    a pass the kernel does not change. The states take the same memory: this shows the effect of a format on logits and
    loss, not its savings. A pass without a cache does not change.

    format  one of `rounding.FORMATS`: "bfloat16", "float8_e4m3", "int8"
    layers  only these layers
    """

    format: str

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("StateDtype", "format", self.format, FORMATS)

    def place(self, points: InterventionPoints) -> None:
        layers = self.layers_in(points.decoder)

        def round_states(cache: Cache) -> None:
            for layer in layers:
                round_in_place(cache.layers[layer], self.format)

        points.cache("the cache", round_states)
        points.hooks.enter_context(replacing(points.decoder.module, "states", str(self), layers))
