"""Where in a model a value is found: at which module, as output or argument, and in which layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder


@dataclass(frozen=True)
class ValueLayout:
    """Layout of a tensor in a model: how it becomes [batch, position, ...], and is put back.

    A captured tensor is reshaped only when it is read, since a decode step has no time for it.

    rows   rows per token where sequence and position share one axis; 0 where they are two axes
    flat   whether the one row of a token has no axis of its own
    shape  shape that the last axis is split into
    index  index to select from the second-to-last axis after the split; None to keep all
    """

    rows: int = 0
    shape: tuple[int, ...] = ()
    index: int | None = None
    flat: bool = False

    def count_tokens(self, value: Any) -> int:
        """Return the number of tokens of a captured value."""
        return int(value.shape[0] // self.rows if self.rows else value.shape[0] * value.shape[1])

    def put(self, new: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return `value`, in its own layout, with the part that `read` shows replaced by `new`."""
        if self.index is not None:
            parts = list(value.unflatten(-1, self.shape).unbind(-2))
            parts[self.index] = new.to(value).reshape(parts[self.index].shape)
            new = torch.stack(parts, dim=-2)
        return new.to(value).reshape(value.shape)  # in a split model it may come from another device

    def read(self, values: Sequence[Any], batch: int) -> Any:
        """Return the value of a forward pass, or those of consecutive decode steps, as [batch, position, ...]."""
        if not isinstance(values[0], torch.Tensor):
            return values[0] if len(values) == 1 else type(values[0]).joined(list(values))
        if self.rows and len(values) > 1:  # decode steps: [batch * rows, ...] each
            joined = torch.cat(list(values)).unflatten(0, (len(values), batch, self.rows)).transpose(0, 1)
        elif self.rows:
            joined = values[0].unflatten(0, (batch, -1, self.rows))
        else:
            joined = values[0] if len(values) == 1 else torch.cat(list(values), dim=1)
        joined = joined[:, :, 0] if self.flat else joined
        joined = joined.unflatten(-1, self.shape) if self.shape else joined
        return joined if self.index is None else joined[..., self.index, :]


PLAIN, FLAT = ValueLayout(), ValueLayout(rows=1, flat=True)


@dataclass(frozen=True)
class Attachment:
    """A module that computes or takes a value: its output, or one of its arguments."""

    module: nn.Module
    argument: int | None = None
    layout: ValueLayout = PLAIN


def attachment(decoder: Decoder, layer: int, word: str) -> Attachment | None:
    """Return where the value of this name is found in a layer; None if only a function call has it.

    word  as in `sites`, "mixer.gate"; and "mixer.input", "mlp.input", the residual stream before a part; and
          "shared_expert_gate", its logit
    """
    if word == "residual":
        return Attachment(decoder.layers[layer])
    if word == "mixer.input":
        return Attachment(decoder.layers[layer], 0)
    if word == "mlp.input":
        return Attachment(decoder.part(layer, "mlp" if decoder.kind(layer).post_norm else "mlp_norm"), 0)
    if word in ("mixer", "mlp"):
        return Attachment(decoder.adder(layer, word))
    if word in ("router", "experts", "shared_expert", "shared_expert_gate"):
        return Attachment(decoder.part(layer, word), layout=FLAT)
    place = decoder.kind(layer).place(word, decoder.module.config)
    if place is None:
        return None
    module = decoder.mixer(layer).get_submodule(place.module)
    return Attachment(module, place.argument, ValueLayout(place.rows, place.shape, place.index))


def head_counts(decoder: Decoder, layer: int) -> tuple[int, int]:
    """Return the number of heads of a layer's mixer, value heads or query heads, and of key heads."""
    return decoder.kind(layer).head_counts(decoder.module.config)
