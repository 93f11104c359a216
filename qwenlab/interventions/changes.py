"""Changes of a value at a site, as changes of the call or result that holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.router import Routed, rerouted
from qwenlab.capture.tokens import TokenBatch

Value = TypeVar("Value", bound=Any)
Change = Callable[[Value, TokenBatch], Value | None]
"""A value and the tokens that the pass reads -> the new value, or None to leave it."""
ChangeValue = Change[torch.Tensor]
"""Of a value [batch, position, ...]: the new one has the same shape."""

LEAST_DECAY = 1e-18
"""Smaller decays are set to this one: it leaves nothing of a state in float32, and its ln is still summed exactly."""


def with_argument(change: ChangeValue, name: str) -> Change[DeltaRuleCall]:
    """Change one argument of the delta rule; the decay as alpha, not its ln."""

    def of_call(call: DeltaRuleCall, tokens: TokenBatch) -> DeltaRuleCall | None:
        old = call.g.exp() if name == "decay" else getattr(call, name)
        new = change(old, tokens)
        if new is None:
            return None
        if name == "decay":  # exp and ln would round the decays that do not change
            log = new.float().clamp_min(LEAST_DECAY).log().to(call.g.dtype)
            return replace(call, g=torch.where(new == old, call.g, log))
        return replace(call, **{name: new.to(old.dtype)})  # type: ignore[arg-type]

    return of_call


def with_query(change: ChangeValue) -> Change[AttentionCall]:
    """Change the query of the attention function."""

    def of_call(call: AttentionCall, tokens: TokenBatch) -> AttentionCall | None:
        new = change(call.query.transpose(1, 2), tokens)
        return None if new is None else replace(call, query=new.to(call.query.dtype).transpose(1, 2))

    return of_call


def with_logits(change: ChangeValue, router: Any) -> Change[Routed]:
    """Change the logits of a router, and with them its choice."""

    def of_router(routed: Routed, tokens: TokenBatch) -> Routed | None:
        new = change(routed.logits.reshape(tokens.batch, tokens.width, -1), tokens)
        return None if new is None else rerouted(router, new.reshape(routed.logits.shape), routed.chosen.shape[-1])

    return of_router
