"""Count distinct experts in windows of consecutive tokens, independent of batching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.probes.accumulators import Accumulator, BinnedSums, LayerSlice, counted

WINDOWS = (2, 4, 8, 16, 32, 64, 128)
"""Lengths, in tokens, of the aligned windows in which distinct experts are counted."""

LONGEST_WINDOW = WINDOWS[-1]

MAX_MARKS = 2**22
"""Marks of chosen experts in memory at a time (elements): those of some of the longest windows."""


class Windows(Accumulator):
    """Counts, per layer, the distinct experts of windows [n i, n i + n) of a sequence's positions, also across calls.

    A window with a token that was never read is not counted.
    """

    def __init__(self, layers: int) -> None:
        self._layers, self._sums = layers, BinnedSums(layers, len(WINDOWS))

    def add(self, where: LayerSlice, chosen: torch.Tensor, experts: int, tokens: TokenBatch) -> None:
        """Add `chosen` int [layer, batch, position, k]: which of the `experts` each token chose."""
        places = tokens.once(WindowSlots, lambda: WindowSlots.of(tokens))
        layers, batch, _, k = chosen.shape
        by_slot = chosen.new_full((layers, batch, places.slots + 1, k), experts)  # in a slot without a token: no expert
        by_slot.scatter_(2, places.slot[None, :, :, None].expand_as(chosen), chosen)
        self._complete(where, by_slot, places, tokens, experts)
        by_window = by_slot[:, :, :-1].unflatten(2, (-1, LONGEST_WINDOW))
        most = max(1, MAX_MARKS // (layers * batch * LONGEST_WINDOW * (experts + 1)))
        for start in range(0, by_window.shape[2], most):
            at = slice(start, start + most)
            counts = _distinct(by_window[:, :, at], experts).flatten(1)[..., None]
            group, length = places.group[:, at].flatten(), places.length[:, at].reshape(-1, 1)
            ones = torch.ones_like(counts)
            self._sums.add(where, tokens.groups, group, length, distinct=counts, windows=ones)

    def _complete(
        self, where: LayerSlice, by_slot: torch.Tensor, places: WindowSlots, tokens: TokenBatch, none: int
    ) -> None:
        """Add the carried choices of the longest window that was open, and carry those of the one that is open now.

        none  index of no expert, larger than that of each
        """
        index = places.open[None, :, :, None].expand(len(by_slot), -1, -1, by_slot.shape[3])
        first = by_slot[:, :, :LONGEST_WINDOW]
        carried = tokens.carried((id(self), "met"), self._layers, first, none)
        begin = tokens.carried((id(self), "begin"), self._layers, places.last[None], -1)
        old, old_begin = (each[where].to(by_slot.device) for each in (carried, begin))
        still_open = (old_begin == places.origin) & (places.longest < tokens.begin)
        first.copy_(torch.where(still_open[..., None], torch.minimum(first, old), first))
        carried[where] = torch.where(tokens.idle[:, None, None], old, by_slot.gather(2, index)).to(carried.device)
        begin[where] = torch.where(tokens.idle[:, None], old_begin, places.last).to(begin.device)

    def arrays(self, labels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of distinct experts, and the number of windows: [label, fold, layer, window] each."""
        distinct, windows = (self._sums.array(name, labels, 1)[..., 0, :] for name in ("distinct", "windows"))
        return distinct, counted(windows)


@dataclass(frozen=True)
class WindowSlots:
    """Places of the tokens of a batch among windows, the same in every layer."""

    origin: torch.Tensor  # int [batch, 1]: position at which the longest window of each row's first token starts
    slot: torch.Tensor  # int [batch, position]: offset of each token from there; that of padding is `slots`
    slots: int
    group: torch.Tensor  # int [batch, longest window, window in it]: group of each; padding's if it is not complete
    length: torch.Tensor  # int, the same: index of its length among WINDOWS
    longest: torch.Tensor  # int [batch, place]: positions of the longest window at the origin
    last: torch.Tensor  # int [batch, 1]: position at which the longest window of each row's next token starts
    open: torch.Tensor  # int [batch, place]: slots of that window

    @staticmethod
    def of(tokens: TokenBatch) -> WindowSlots:
        """Return the places of these tokens."""
        longest = LONGEST_WINDOW
        origin = tokens.begin // longest * longest
        slots = (tokens.width // longest + 2) * longest  # from the longest window's start to beyond the last token
        slot = torch.where(tokens.real, tokens.position - origin, slots)
        group_at = tokens.group.new_zeros(tokens.batch, slots + 1).scatter_(1, slot, tokens.group)[:, :-1]
        read = origin + torch.arange(slots, device=origin.device) >= tokens.first[:, None]  # and every token since
        group_at, read = (each.unflatten(1, (-1, longest)) for each in (group_at, read))
        # A window has the group of its last token, and PADDING is 0.
        group = torch.cat([group_at[..., size - 1 :: size] * read[..., ::size] for size in WINDOWS], dim=2)
        lengths = torch.arange(len(WINDOWS), device=origin.device)
        length = lengths.repeat_interleave(longest // 2 >> lengths, output_size=group.shape[2]).expand_as(group)
        places = torch.arange(longest, device=origin.device)
        last = (1 + torch.where(tokens.real, tokens.position, -1).amax(dim=1, keepdim=True)) // longest * longest
        still_open = (last - origin).clamp(0, slots - longest) + places
        return WindowSlots(origin, slot, slots, group, length, origin + places, last, still_open)


def _distinct(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """Return the number of distinct experts in each window of WINDOWS within longest windows.

    chosen   int [layer, batch, longest window, slot, k]; `experts` for none
    returns  [layer, batch, longest window, window in it], the shortest first
    """
    marks = torch.zeros(*chosen.shape[:-1], experts + 1, dtype=torch.bool, device=chosen.device)
    met, levels = marks.scatter_(-1, chosen, True)[..., :experts], []
    for _ in WINDOWS:
        met = met[..., 0::2, :] | met[..., 1::2, :]  # a window of 2n tokens is two of n
        levels.append(met)
    return torch.cat(levels, dim=3).sum(dim=-1)
