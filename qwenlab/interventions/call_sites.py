"""Interventions on functions that layers call by name: the delta rule, the convolution and the attention function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qwenlab.capture.calls import AttentionCall, DeltaRuleCall
from qwenlab.capture.functions import LayerFunctions
from qwenlab.capture.tokens import TokenBatch
from qwenlab.interventions.hits import HitCount, HitCounter

ChangeRule = Callable[[DeltaRuleCall, TokenBatch], DeltaRuleCall | None]
"""The arguments of the delta rule and the tokens read -> the new arguments, or None to leave them."""
ChangeAttention = Callable[[AttentionCall, TokenBatch], AttentionCall | None]
ChangeWeight = Callable[[torch.Tensor, TokenBatch], torch.Tensor | None]
ReplaceRule = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], TokenBatch], Any]
"""The rule, its arguments and keyword arguments, and the tokens read -> its result, or None to let the rule run."""


class CallSites:
    """Changes the functions that layers call, and counts each change."""

    def __init__(self, functions: LayerFunctions, hits: HitCounter) -> None:
        self._functions, self._hits = functions, hits

    def rule(self, layer: int, where: str, change: ChangeRule) -> None:
        """Change the arguments of a DeltaNet layer's delta rule."""
        self._functions.change_rule(layer, self._counted(where, change))

    def replace_rule(self, layer: int, where: str | None, new_rule: ReplaceRule) -> None:
        """Replace the delta rule of a DeltaNet layer.

        where  None for another way to the same result: that is not counted
        """
        count = HitCount("") if where is None else self._hits.add(where)

        def run(rule: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            query = args[0] if args else kwargs["query"]
            new = self._hits.apply(count, lambda _, tokens: new_rule(rule, args, kwargs, tokens), query)
            return rule(*args, **kwargs) if new is None else new

        self._functions.replace_rule(layer, run)

    def convolution(self, layer: int, where: str, change: ChangeWeight) -> None:
        """Change the weights [channel, tap] of a DeltaNet layer's convolution; the last tap is the token's own."""
        self._functions.change_convolution(layer, self._counted(where, change))

    def attention(self, layer: int, where: str, change: ChangeAttention) -> None:
        """Change the query, mask or window of an attention layer's attention function."""
        self._functions.change_attention(layer, self._counted(where, change))

    def _counted(self, where: str, change: Callable[[Any, TokenBatch], Any]) -> Callable[[Any], Any]:
        count = self._hits.add(where)

        def counted(value: Any) -> Any:
            new = self._hits.apply(count, change, value)
            return value if new is None else new

        return counted
