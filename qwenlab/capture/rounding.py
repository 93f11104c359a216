"""Round states to low-precision formats."""

from __future__ import annotations

from typing import Any

import torch

FORMATS = ("bfloat16", "float8_e4m3", "int8")
"""Formats of a state. All but bfloat16 have one scale per head, which maps the largest element to the format's."""

_LARGEST = {"float8_e4m3": 448.0, "int8": 127.0}


def rounded(state: torch.Tensor, format: str) -> torch.Tensor:
    """Return states [..., key channel, channel] rounded to a format, in float32."""
    state = state.float()
    if format == "bfloat16":
        return state.bfloat16().float()
    scale = state.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST[format]
    units = state / scale
    return (units.round() if format == "int8" else units.to(torch.float8_e4m3fn).float()) * scale


@torch.no_grad()
def round_in_place(layer: Any, format: str) -> None:
    """Round the recurrent state of one layer of a cache."""
    states = layer.recurrent_states
    for state in states.values() if isinstance(states, dict) else (states,):
        if state is not None:
            state.copy_(rounded(state, format))
