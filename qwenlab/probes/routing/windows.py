"""Count distinct experts in windows of consecutive tokens, independent of batching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.capture.tokens import FOLDS, PADDING, TokenBatch
from qwenlab.probes.accumulators import LayerSlice, Sums, counted

WINDOWS = (2, 4, 8, 16, 32, 64, 128)
"""Lengths, in tokens, of the aligned windows in which distinct experts are counted."""

LONGEST_WINDOW = WINDOWS[-1]


class Windows:
    """Counts, per layer, the distinct experts of every complete window [n i, n i + n) of a sequence's positions.

    A window that began before this call is completed with the choices carried from earlier calls. A window with a token
    that was never read is not counted.
    """

    def __init__(self, layers: int) -> None:
        self._layers, self._sums = layers, Sums(layers)

    def add(self, where: LayerSlice, chosen: torch.Tensor, tokens: TokenBatch) -> None:
        """Add `chosen` bool [layer, batch, position, expert]: the experts that each token chose."""
        places = tokens.once(WindowSlots, lambda: WindowSlots.of(tokens))
        in_slot = chosen.new_zeros(*chosen.shape[:2], places.slots + 1, chosen.shape[3])
        in_slot = in_slot.scatter_(2, places.slot[None, :, :, None].expand_as(chosen), chosen)[:, :, :-1]
        self._complete(where, in_slot, places, tokens)
        distinct = []
        for _ in WINDOWS:
            in_slot = in_slot[:, :, 0::2] | in_slot[:, :, 1::2]  # a window of 2n tokens is two of n
            distinct.append(in_slot.sum(dim=-1).flatten(1))
        counts = torch.cat(distinct, dim=1)
        both = torch.stack([counts, torch.ones_like(counts)], dim=-1)
        self._sums.add_rows(where, 1 + (tokens.groups - 1) * len(WINDOWS), places.group, both=both)

    def _complete(self, where: LayerSlice, in_slot: torch.Tensor, places: WindowSlots, tokens: TokenBatch) -> None:
        """Add the carried choices of the longest window that was open, and carry those of the one that is open now."""
        index = places.open[None, :, :, None].expand(len(in_slot), -1, -1, in_slot.shape[3])
        carried = tokens.carried((id(self), "met"), self._layers, in_slot[:, :, :LONGEST_WINDOW])
        begin = tokens.carried((id(self), "begin"), self._layers, places.last[None], -1)
        old, old_begin = (each[where].to(in_slot.device) for each in (carried, begin))
        still_open = (old_begin == places.origin) & (places.longest < tokens.begin)
        in_slot[:, :, :LONGEST_WINDOW] |= old & still_open[..., None]
        carried[where] = torch.where(tokens.idle[:, None, None], old, in_slot.gather(2, index)).to(carried.device)
        begin[where] = torch.where(tokens.idle[:, None], old_begin, places.last).to(begin.device)

    def arrays(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of distinct experts, and the number of windows: [label, fold, layer, window] each."""
        both = self._sums.array("both", labels * len(WINDOWS), 2)  # windows are innermost, after label and fold
        layers = both.shape[2]
        both = both.transpose(2, 0, 1, 3).reshape(layers, labels, FOLDS, len(WINDOWS), 2).transpose(1, 2, 0, 3, 4)
        return both[..., 0], counted(both[..., 1])


@dataclass(frozen=True)
class WindowSlots:
    """Places of the tokens of a batch among windows, the same in every layer.

    origin   int [batch, 1]: position at which the longest window of each row's first token starts
    slot     int [batch, position]: offset of each token from there; padding goes to an extra slot, the last
    slots    number of slots
    group    int [windows of all lengths]: group and length of every window; padding's if it is not complete
    longest  int [batch, place]: positions of the longest window at the origin
    last     int [batch, 1]: position at which the longest window of each row's next token starts
    open     int [batch, place]: slots of that window
    """

    origin: torch.Tensor
    slot: torch.Tensor
    slots: int
    group: torch.Tensor
    longest: torch.Tensor
    last: torch.Tensor
    open: torch.Tensor

    @staticmethod
    def of(tokens: TokenBatch) -> WindowSlots:
        """Return the places of these tokens."""
        length = LONGEST_WINDOW
        origin = tokens.begin // length * length
        slots = (tokens.width // length + 2) * length  # from the longest window's start to beyond the last token
        slot = torch.where(tokens.real, tokens.position - origin, slots)
        group_at = tokens.group.new_zeros(tokens.batch, slots + 1).scatter_(1, slot, tokens.group)[:, :-1]
        groups = []
        for index, size in enumerate(WINDOWS):
            group = group_at[:, size - 1 :: size]  # a window has the group of its last token
            start = origin + size * torch.arange(group.shape[1], device=origin.device)
            complete = (group > PADDING) & (start >= tokens.first[:, None])
            groups.append(torch.where(complete, 1 + (group - 1) * len(WINDOWS) + index, PADDING).flatten())
        places = torch.arange(length, device=origin.device)
        last = (1 + torch.where(tokens.real, tokens.position, -1).amax(dim=1, keepdim=True)) // length * length
        still_open = (last - origin).clamp(0, slots - length) + places
        return WindowSlots(origin, slot, slots, torch.cat(groups), origin + places, last, still_open)
