"""Run the delta rule on segments of a sequence as rows of a batch, so that each starts from an empty state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import CHUNK
from qwenlab.capture.tokens import TokenBatch

MOST_ELEMENTS = 2**26
"""Largest number of state elements to compute at a time."""


@dataclass(frozen=True)
class Segments:
    """The index of each token when its sequence is split into segments of equal length, one per row.

    length   tokens per segment
    count    segments per sequence
    index    int [batch, position]: index of a token in the segments of its sequence; of padding, one beyond the last
    starts   bool [batch]: sequences whose first token here starts a segment, and so forgets the state before
    last     int [batch]: segment of each sequence's last token here
    """

    length: int
    count: int
    index: torch.Tensor
    starts: torch.Tensor
    last: torch.Tensor

    @staticmethod
    def of(tokens: TokenBatch, length: int) -> Segments:
        """Segments that start at multiples of `length` in their sequences; indices count from the first one here."""
        count = (tokens.width + length - 2) // length + 1
        first = torch.where(tokens.idle[:, None], 0, tokens.begin)
        index = torch.where(tokens.real, tokens.position - first // length * length, count * length)
        last = torch.where(tokens.real, index, 0).amax(dim=1) // length
        starts = (first > 0) & (first % length == 0) & ~tokens.idle[:, None]
        return Segments(length, count, index, starts[:, 0], last)

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, position, ...] -> [batch * segment, position in the segment, ...], 0 without a token."""
        batch, rest = tensor.shape[0], tensor.shape[2:]
        rows = torch.arange(batch, device=tensor.device)[:, None]
        padded = tensor.new_zeros(batch, self.count * self.length + 1, *rest)
        padded = padded.index_put((rows, self.index), tensor)
        return padded[:, :-1].reshape(batch * self.count, self.length, *rest)

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of `split`; zeros for padding."""
        padded = tensor.reshape(-1, self.count * self.length, *tensor.shape[2:])
        rows = torch.arange(padded.shape[0], device=padded.device)[:, None]
        padded = torch.nn.functional.pad(padded, (*[0, 0] * (padded.ndim - 2), 0, 1))
        return padded[rows, self.index]


def run_in_segments(
    rule: Callable[..., Any], call: DeltaRuleCall, kwargs: dict[str, Any], segments: Segments
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output and the last states of a rule, with an empty state at the start of each segment.

    Padding is skipped and changes no state. `kwargs` are the other arguments of the call, such as `initial_state`.
    """
    _, tensors = call.to_call((), {})
    tensors = {name: segments.split(tensor) for name, tensor in tensors.items()}
    others = {name: value for name, value in kwargs.items() if name not in (*tensors, "initial_state")}
    state = kwargs.get("initial_state")
    if state is not None:
        before = torch.where(segments.starts[:, None, None, None], 0, state)[:, None]
        state = torch.cat([before, before.new_zeros(len(before), segments.count - 1, *before.shape[2:])], dim=1)
        state = state.flatten(0, 1)
    size = call.value.shape[2] * call.key.shape[3] * call.value.shape[3]
    outs, states = [], []
    step = max(1, MOST_ELEMENTS // size)
    for start in range(0, len(tensors["g"]), step):
        part = {name: tensor[start : start + step] for name, tensor in tensors.items()}
        query, key, value = (part.pop(name) for name in ("query", "key", "value"))
        initial = None if state is None else state[start : start + step]
        out, after = rule(query, key, value, **part, initial_state=initial, **others)
        outs.append(out)
        states.append(after)
    out = segments.join(torch.cat(outs))
    if states[0] is None:
        return out, None
    after = torch.cat(states).unflatten(0, (-1, segments.count))
    return out, after[torch.arange(len(after), device=after.device), segments.last]


def crowded(starts: torch.Tensor, length: int) -> bool:
    """Whether several segments start within one chunk, over which kernels sum decays: more than one costs digits.

    starts  bool [batch, position]: the first tokens of segments of this length
    """
    return length < CHUNK and bool((starts.sum(dim=1) > 1).any())
