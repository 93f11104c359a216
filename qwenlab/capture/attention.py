"""The attention function of an attention layer: its call as a record, and where it is read or changed."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from qwenlab.capture.layer_calls import LayerCalls
from qwenlab.capture.wrapping import Arguments, listening, unwrapped
from qwenlab.checkpoint.decoder import Decoder

_ARGUMENTS = ("module", "query", "key", "value", "attention_mask")


@dataclass(slots=True)
class AttentionCall:
    """One call of the attention function by one layer, or consecutive decode steps joined into one call.

    query    [batch, head, position, channel], normed and rotated
    key      [batch, key head, past + position, channel]: all keys of the cache, normed and rotated
    scaling  factor on the scores
    value    [batch, key head, past + position, channel]; a probe that reads no values has none
    mask     as the implementation takes it; None where it is causal by itself
    visible  bool [batch, 1 or head, position, past + position]: which keys each query may attend to; only where an
             intervention changed that
    window   width of a sliding window that the implementation applies without a mask; None without one
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    value: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    window: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position]"""
        return self.query.shape[0], self.query.shape[2]

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.query.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the number of tokens."""
        return self.query.nbytes + (0 if self.visible is None else self.visible.nbytes)

    @staticmethod
    def from_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionCall:
        """Read a call of one of transformers' attention functions."""
        call = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        query, scaling = call["query"], call.get("scaling") or call["query"].shape[-1] ** -0.5
        mask, window = call["attention_mask"], call.get("sliding_window")
        return AttentionCall(query, call["key"], scaling, call["value"], mask, None, window)

    def to_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of the original call with this query, mask and window."""
        new = {"query": self.query, "attention_mask": self.mask}
        kwargs = kwargs | ({} if self.window is None else {"sliding_window": self.window})
        positional = [new.get(name, value) for name, value in zip(_ARGUMENTS, args, strict=False)]
        kwargs |= {name: value for name, value in new.items() if name in _ARGUMENTS[len(args) :]}
        return (*positional, *args[len(_ARGUMENTS) :]), kwargs

    @staticmethod
    def joined(calls: list[AttentionCall]) -> AttentionCall:
        """Join consecutive decode steps; the last step's keys and values include those of all steps."""
        query = torch.cat([call.query for call in calls], dim=2)
        visible = None if all(call.visible is None for call in calls) else _joined_masks(calls)
        return replace(calls[-1], query=query, visible=visible)


def _joined_masks(calls: list[AttentionCall]) -> torch.Tensor:
    """Join the masks of decode steps; a step that no intervention changed sees all keys up to its own."""
    columns, visible = calls[-1].key.shape[2], []
    heads = max(1 if call.visible is None else call.visible.shape[1] for call in calls)
    for call in calls:
        shape = (call.query.shape[0], heads, call.query.shape[2], -1)
        own = call.query.new_ones(1, 1, 1, columns, dtype=torch.bool) if call.visible is None else call.visible
        visible.append(torch.nn.functional.pad(own, (0, columns - own.shape[3])).expand(shape))
    return torch.cat(visible, dim=2)


class AttentionHooks(LayerCalls[AttentionCall]):
    """Reads and changes the attention function that the layers of one model call, until `hooks` closes.

    It is one of transformers' table, or "eager" of the modeling file. The call passes on the module of the layer.
    """

    def __init__(self, decoder: Decoder, hooks: ExitStack) -> None:
        modeling: Any = sys.modules[decoder.family.modeling]
        functions, name = modeling.ALL_ATTENTION_FUNCTIONS, decoder.module.config._attn_implementation
        if name in functions:
            wrap = partial(listening, functions._local_mapping, name, original=unwrapped(functions[name]))
        else:
            wrap = partial(listening, modeling, "eager_attention_forward")
        super().__init__(
            decoder,
            hooks,
            [wrap],
            record=lambda layer, args, kwargs: AttentionCall.from_call(args, kwargs),
            caller=lambda args, kwargs: args[0] if args else kwargs["module"],
        )
