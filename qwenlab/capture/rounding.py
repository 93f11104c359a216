"""States in low precision: how they are rounded."""

from __future__ import annotations

from typing import Any

import torch

from qwenlab.errors import BadArgument

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


@torch.no_grad()
def round_in_place(kept: Any, format: str) -> None:
    """Round the recurrent state that one layer of a cache keeps."""
    held = kept.recurrent_states
    for state in held.values() if isinstance(held, dict) else (held,):
        if state is not None:
            state.copy_(rounded(state, format))
