"""States in low precision: how they are rounded, and a model that keeps them so between its forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument, NothingToProbe
from qwenlab.probe.wrapping import outputs

FORMATS = ("bfloat16", "float8_e4m3", "int8")
"""bfloat16 as it is; the other two with one scale a head, so that its largest element is the largest of the format."""

_LARGEST = {"float8_e4m3": 448.0, "int8": 127.0}


def rounded(state: torch.Tensor, format: str) -> torch.Tensor:
    """States [..., key channel, channel] as they come back from a format, in float32."""
    state = state.float()
    if format == "bfloat16":
        return state.bfloat16().float()
    scale = state.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST[format]
    units = state / scale
    return (units.round() if format == "int8" else units.to(torch.float8_e4m3fn).float()) * scale


def check_format(format: str, asked: str) -> None:
    """Raise BadArgument for a format that is not known; `asked` says where."""
    if format not in FORMATS:
        raise BadArgument(f"{asked}: {format!r} is no format of a state.\nChoose among {', '.join(FORMATS)}.")


@contextmanager
def state_dtype(model: nn.Module | Any, format: str) -> Iterator[None]:
    """Keep the recurrent states of the DeltaNet layers in low precision between forward passes, in a `with` block.

    After every pass the states that it left in its cache are rounded (`rounded`), and the next pass begins with those:
    in a decode that is after every token, in a prefill after its last. Within a pass the kernel works as it does. The
    memory they take stays the same: this shows what a format does to the logits and to the loss, not what it saves. A
    pass without a cache is not changed.

    format  one of `FORMATS`

    Raises BadArgument for another format, and NothingToProbe for a model without DeltaNet layers.
    """
    check_format(format, f"state_dtype(model, {format!r})")
    decoder = decoder_of(model if isinstance(model, nn.Module) else model.model)
    layers = decoder.layers_of(DELTANET)
    if not layers:
        raise NothingToProbe("state_dtype(model, ...) finds no state: this model has no DeltaNet layer.")

    def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        values = out.values() if isinstance(out, dict) else out
        cache = next((value for value in (*values, *args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is not None:
            for layer in layers:
                _round_in_place(cache.layers[layer], format)

    with outputs(decoder.module, after):
        yield


@torch.no_grad()
def _round_in_place(kept: Any, format: str) -> None:
    """Round the recurrent state that one layer of a cache keeps."""
    held = kept.recurrent_states
    for state in held.values() if isinstance(held, dict) else (held,):
        if state is not None:
            state.copy_(rounded(state, format))
