"""Distinct experts in windows of neighbouring tokens, however the tokens are fed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.capture.tokens import FOLDS, PADDING, TokenBatch
from qwenlab.probes.accumulators import At, Sums, counted

WINDOWS = (2, 4, 8, 16, 32, 64, 128)
"""Lengths, in tokens, of the aligned windows in which distinct experts are counted."""

LONGEST = WINDOWS[-1]


class Windows:
    """Counts, layer by layer, the distinct experts of every complete window [n i, n i + n) of a sequence's positions.

    A window that began before this call is completed from what was kept of the calls before; one of which a token was
    never read is not counted.
    """

    def __init__(self, layers: int) -> None:
        self._layers, self._sums = layers, Sums(layers)

    def add(self, where: At, met: torch.Tensor, reading: TokenBatch) -> None:
        """Add `met` bool [layer, batch, position, expert]: the experts that each token chose."""
        places = reading.once(WindowSlots, lambda: WindowSlots.of(reading))
        met_at = met.new_zeros(*met.shape[:2], places.slots + 1, met.shape[3])
        met_at = met_at.scatter_(2, places.slot[None, :, :, None].expand_as(met), met)[:, :, :-1]
        self._complete(where, met_at, places, reading)
        distinct = []
        for _ in WINDOWS:
            met_at = met_at[:, :, 0::2] | met_at[:, :, 1::2]  # a window of 2n tokens is two of n
            distinct.append(met_at.sum(dim=-1).flatten(1))
        counts = torch.cat(distinct, dim=1)
        both = torch.stack([counts, torch.ones_like(counts)], dim=-1)
        self._sums.move(where, 1 + (reading.groups - 1) * len(WINDOWS), places.group, both=both)

    def _complete(self, where: At, met_at: torch.Tensor, places: WindowSlots, reading: TokenBatch) -> None:
        """Add what was kept of the longest window that was open, and keep the one that is open now."""
        spread = places.open[None, :, :, None].expand(len(met_at), -1, -1, met_at.shape[3])
        kept = reading.carried((id(self), "met"), self._layers, met_at[:, :, :LONGEST])
        begin = reading.carried((id(self), "begin"), self._layers, places.last[None], -1)
        held, held_begin = (each[where].to(met_at.device) for each in (kept, begin))
        still_open = (held_begin == places.origin) & (places.longest < reading.begin)
        met_at[:, :, :LONGEST] |= held & still_open[..., None]
        kept[where] = torch.where(reading.idle[:, None, None], held, met_at.gather(2, spread)).to(kept.device)
        begin[where] = torch.where(reading.idle[:, None], held_begin, places.last).to(begin.device)

    def arrays(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """Sum of distinct experts, and number of windows: [label, fold, layer, window] each."""
        both = self._sums.array("both", labels * len(WINDOWS), 2)  # windows are innermost, after label and fold
        layers = both.shape[2]
        both = both.transpose(2, 0, 1, 3).reshape(layers, labels, FOLDS, len(WINDOWS), 2).transpose(1, 2, 0, 3, 4)
        return both[..., 0], counted(both[..., 1])


@dataclass(frozen=True)
class WindowSlots:
    """Where the tokens of a reading lie among windows: the same in every layer.

    origin  int [batch, 1]: position at which the longest window of each row's first token starts
    slot    int [batch, position]: place of each token after that; padding goes to a spare one, the last
    slots   how many there are
    group   int [window in all]: group and length of every window of every length; padding's where it is not complete
    longest  int [batch, place]: positions of the longest window at the origin
    last    int [batch, 1]: position at which the longest window of each row's next token starts
    open    int [batch, place]: places of that window after the origin
    """

    origin: torch.Tensor
    slot: torch.Tensor
    slots: int
    group: torch.Tensor
    longest: torch.Tensor
    last: torch.Tensor
    open: torch.Tensor

    @staticmethod
    def of(reading: TokenBatch) -> WindowSlots:
        """The places of these tokens."""
        origin = reading.begin // LONGEST * LONGEST
        slots = (reading.width // LONGEST + 2) * LONGEST  # from the longest window's start to beyond the last token
        slot = torch.where(reading.real, reading.position - origin, slots)
        group_at = reading.group.new_zeros(reading.batch, slots + 1).scatter_(1, slot, reading.group)[:, :-1]
        found = []
        for index, length in enumerate(WINDOWS):
            group = group_at[:, length - 1 :: length]  # a window has the group of its last token
            start = origin + length * torch.arange(group.shape[1], device=origin.device)
            complete = (group > PADDING) & (start >= reading.first[:, None])
            found.append(torch.where(complete, 1 + (group - 1) * len(WINDOWS) + index, PADDING).flatten())
        places = torch.arange(LONGEST, device=origin.device)
        last = (1 + torch.where(reading.real, reading.position, -1).amax(dim=1, keepdim=True)) // LONGEST * LONGEST
        still_open = (last - origin).clamp(0, slots - LONGEST) + places
        return WindowSlots(origin, slot, slots, torch.cat(found), origin + places, last, still_open)
