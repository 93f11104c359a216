"""Where in a model a value is found: at which module, as output or argument, and in which layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET


@dataclass(frozen=True)
class ValueLayout:
    """ValueLayout of a tensor in a model: how it becomes [batch, position, ...], and is put back.

    A captured tensor is reshaped only when it is read, since a decode step has no time for it.

    rows   rows per token where sequence and position share one axis; 0 where they are two axes
    shape  shape that the last axis is split into
    index  index to select from the second-to-last axis after the split; None to keep all
    """

    rows: int = 0
    shape: tuple[int, ...] = ()
    index: int | None = None

    def count_tokens(self, value: Any) -> int:
        """Return the number of tokens of a captured value."""
        return int(value.shape[0] // self.rows if self.rows else value.shape[0] * value.shape[1])

    def view(self, value: torch.Tensor, batch: int, width: int) -> torch.Tensor:
        """Return the value of one forward pass as [batch, position, ...]."""
        value = value.reshape(batch, width, *([self.rows] if self.rows > 1 else []), -1)
        value = value.unflatten(-1, self.shape) if self.shape else value
        return value if self.index is None else value[..., self.index, :]

    def put(self, new: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return `value`, in its own layout, with the part that `view` shows replaced by `new`."""
        if self.index is not None:
            parts = list(value.unflatten(-1, self.shape).unbind(-2))
            parts[self.index] = new.to(value).reshape(parts[self.index].shape)
            new = torch.stack(parts, dim=-2)
        return new.to(value).reshape(value.shape)  # in a split model it may come from another device

    def read(self, values: Sequence[Any], batch: int) -> Any:
        """Join the captured values of consecutive steps along positions: [batch, position, ...]."""
        if not isinstance(values[0], torch.Tensor):
            return values[0] if len(values) == 1 else type(values[0]).joined(list(values))
        if self.rows and len(values) > 1:  # decode steps: [batch * rows, ...] each
            joined = torch.cat(list(values)).unflatten(0, (len(values), batch, -1)).transpose(0, 1)
            joined = joined if self.rows > 1 else joined[:, :, 0]
        elif self.rows:
            rows = (self.rows,) if self.rows > 1 else ()
            joined = values[0].reshape(batch, -1, *rows, *values[0].shape[1:])
        else:
            joined = values[0] if len(values) == 1 else torch.cat(list(values), dim=1)
        joined = joined.unflatten(-1, self.shape) if self.shape else joined
        return joined if self.index is None else joined[..., self.index, :]


PLAIN, FLAT = ValueLayout(), ValueLayout(rows=1)


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
    delta, family = decoder.layer_types[layer] == DELTANET, decoder.family
    if word == "residual":
        return Attachment(decoder.layers[layer])
    if word == "mixer.input":
        return Attachment(decoder.layers[layer], 0)
    if word == "mlp.input":
        return Attachment(decoder.part(layer, "mlp_norm"), 0)
    if word in ("mixer", "mlp"):
        return Attachment(decoder.part(layer, word))
    if word in ("router", "experts", "shared_expert", "shared_expert_gate"):
        return Attachment(decoder.part(layer, word), layout=FLAT)
    mixer: Any = decoder.mixer(layer)
    if word == "mixer.heads":
        projection = mixer.get_submodule(family.output(decoder.layer_types[layer]))
        return Attachment(projection, 0, ValueLayout(shape=(head_counts(decoder, layer)[0], -1)))
    if word == "mixer.gate" and delta:
        return Attachment(mixer.norm, 1, ValueLayout(rows=mixer.num_v_heads))
    if word == "mixer.gate":  # `q_proj` returns, per head, its query and then its gate
        return Attachment(mixer.q_proj, layout=ValueLayout(shape=(-1, 2, mixer.head_dim), index=1))
    if word == "mixer.value" and not delta:
        return Attachment(mixer.v_proj, layout=ValueLayout(shape=(head_counts(decoder, layer)[1], -1)))
    return None


def head_counts(decoder: Decoder, layer: int) -> tuple[int, int]:
    """Return the number of heads of a layer's mixer, value heads or query heads, and of key heads."""
    mixer, config = decoder.part(layer, "mixer"), decoder.module.config
    if decoder.layer_types[layer] == DELTANET:
        return int(mixer.num_v_heads), int(mixer.num_k_heads)
    return int(config.num_attention_heads), int(config.num_key_value_heads)
