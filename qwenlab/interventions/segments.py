"""The delta rule over segments that each begin with an empty state, side by side: no decay has to forget the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.prediction import CHUNK
from qwenlab.capture.tokens import TokenBatch
from qwenlab.interventions.call_arguments import RuleArguments

HELD = 2**26
"""Elements of states, at most, that are worked out at a time."""


@dataclass(frozen=True)
class Segments:
    """Where tokens come to lie when a sequence is cut at every so many, each segment in a row of its own.

    length   tokens of a segment;  count: of segments that each sequence has room for
    place    int [batch, position]: place of a token among those of its sequence's segments; of padding, one beyond
    begins   bool [batch]: sequences whose first token here begins a segment, and so forgets the state before
    last     int [batch]: segment of each sequence's last token here
    """

    length: int
    count: int
    place: torch.Tensor
    begins: torch.Tensor
    last: torch.Tensor

    @staticmethod
    def of(reading: TokenBatch, length: int) -> Segments:
        """Segments that begin at multiples of a length in their sequences; places are counted from the first here."""
        count = (reading.width + length - 2) // length + 1
        first = torch.where(reading.idle[:, None], 0, reading.begin)
        place = torch.where(reading.real, reading.position - first // length * length, count * length)
        last = torch.where(reading.real, place, 0).amax(dim=1) // length
        begins = (first > 0) & (first % length == 0) & ~reading.idle[:, None]
        return Segments(length, count, place, begins[:, 0], last)

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, position, ...] as [batch * segment, position in it, ...], zeros where there is no token."""
        batch, rest = tensor.shape[0], tensor.shape[2:]
        rows = torch.arange(batch, device=tensor.device)[:, None]
        held = tensor.new_zeros(batch, self.count * self.length + 1, *rest)
        held = held.index_put((rows, self.place), tensor)
        return held[:, :-1].reshape(batch * self.count, self.length, *rest)

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        """The other way; zeros for padding."""
        held = tensor.reshape(-1, self.count * self.length, *tensor.shape[2:])
        rows = torch.arange(held.shape[0], device=held.device)[:, None]
        held = torch.nn.functional.pad(held, (*[0, 0] * (held.ndim - 2), 0, 1))
        return held[rows, self.place]


def run_in_segments(
    rule: Callable[..., Any], call: RuleArguments, kwargs: dict[str, Any], segments: Segments
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a rule makes of a call, and its last states, with an empty state at the beginning of each segment.

    Padding is passed over: it changes no state. `kwargs` are the call's others, `initial_state` among them.
    """
    query, key = (each.repeat_interleave(call.repeated, dim=2) for each in (call.query, call.key))
    given = {"query": query, "key": key, "value": call.value, "g": call.g, "beta": call.beta}
    tensors = {name: segments.cut(each) for name, each in given.items()}
    others = {name: each for name, each in kwargs.items() if name not in (*tensors, "initial_state")}
    state = kwargs.get("initial_state")
    if state is not None:
        before = torch.where(segments.begins[:, None, None, None], 0, state)[:, None]
        state = torch.cat([before, before.new_zeros(len(before), segments.count - 1, *before.shape[2:])], dim=1)
        state = state.flatten(0, 1)
    size = call.value.shape[2] * call.key.shape[3] * call.value.shape[3]
    outs, states = [], []
    step = max(1, HELD // size)
    for start in range(0, len(tensors["g"]), step):
        part = {name: each[start : start + step] for name, each in tensors.items()}
        query, key, value = (part.pop(name) for name in ("query", "key", "value"))
        initial = None if state is None else state[start : start + step]
        out, after = rule(query, key, value, **part, initial_state=initial, **others)
        outs.append(out)
        states.append(after)
    out = segments.joined(torch.cat(outs))
    if states[0] is None:
        return out, None
    after = torch.cat(states).unflatten(0, (-1, segments.count))
    return out, after[torch.arange(len(after), device=after.device), segments.last]


def worth_cutting(reading: TokenBatch, length: int) -> bool:
    """Whether several segments begin within what a kernel sums the decays of: more than one there costs digits."""
    if length >= CHUNK or reading.width == 1:
        return False
    begin = reading.real & (reading.position % length == 0) & (reading.position > 0)
    return bool((begin.sum(dim=1) > 1).any())
