"""Distinct experts in windows of neighbouring tokens, however the tokens are fed."""

from __future__ import annotations

import numpy as np
import torch

from qwenlab.probe.reading import Reading
from qwenlab.probe.tally import Sums, counted

WINDOWS = (2, 4, 8, 16, 32, 64, 128)
"""Lengths, in tokens, of the aligned windows in which distinct experts are counted."""

LONGEST = WINDOWS[-1]


class Windows:
    """Counts, for one layer, the distinct experts of every complete window [n i, n i + n) of a sequence's positions.

    A window that began before this call is completed from what was kept of the calls before; one of which a token was
    never read is not counted.
    """

    def __init__(self) -> None:
        self._sums = [Sums() for _ in WINDOWS]  # of [distinct experts, 1] by window

    def add(self, met: torch.Tensor, reading: Reading) -> None:
        """Add `met` bool [batch, position, expert]: the experts that each token chose."""
        origin = reading.begin // LONGEST * LONGEST
        slots = (reading.width // LONGEST + 2) * LONGEST  # from the longest window's start to beyond the last token
        slot = torch.where(reading.real, reading.position - origin, slots)  # padding goes to a spare one
        met_at = met.new_zeros(reading.batch, slots + 1, met.shape[2])
        met_at = met_at.scatter_(1, slot[..., None].expand_as(met), met)[:, :-1]
        group_at = reading.group.new_zeros(reading.batch, slots + 1).scatter_(1, slot, reading.group)[:, :-1]
        self._complete(met_at, origin, reading)
        for sums, length in zip(self._sums, WINDOWS, strict=True):
            met_at = met_at.unflatten(1, (-1, 2)).any(dim=2)  # a window of 2n tokens is two of n
            group_at = group_at.unflatten(1, (-1, 2))[:, :, 1]  # and has the group of its last token
            start = origin + length * torch.arange(group_at.shape[1], device=origin.device)
            group = torch.where(start >= reading.first[:, None], group_at, 0)
            distinct = met_at.sum(dim=-1)
            sums.move(
                reading.groups, group.flatten(), torch.stack([distinct, torch.ones_like(distinct)], -1).flatten(0, 1)
            )

    def _complete(self, met_at: torch.Tensor, origin: torch.Tensor, reading: Reading) -> None:
        """Add what was kept of the longest window that was open, and keep the one that is open now."""
        places = torch.arange(LONGEST, device=met_at.device)
        held = reading.carry.get(id(self))
        if held is not None:
            still_open = (held[1] == origin) & (origin + places < reading.begin)
            met_at[:, :LONGEST] |= held[0] & still_open[..., None]
        end = 1 + torch.where(reading.real, reading.position, -1).amax(dim=1, keepdim=True)
        begin = end // LONGEST * LONGEST
        slot = (begin - origin).clamp(0, met_at.shape[1] - LONGEST) + places
        now = met_at.gather(1, slot[..., None].expand(-1, -1, met_at.shape[2]))
        if held is not None:
            now = torch.where(reading.idle[:, None, None], held[0], now)
            begin = torch.where(reading.idle[:, None], held[1], begin)
        reading.carry[id(self)] = (now, begin)

    def arrays(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """Sum of distinct experts, and number of windows: [label, fold, window] each."""
        both = np.stack([sums.array(labels, 2) for sums in self._sums], axis=2)
        return both[..., 0], counted(both[..., 1])
