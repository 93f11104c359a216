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


class Windows(Accumulator):
    """Counts, per layer, the distinct experts of windows [n i, n i + n) of a sequence's positions, also across calls.

    A window with a token that was never read is not counted.
    """

    def __init__(self, layers: int) -> None:
        self._layers, self._sums = layers, BinnedSums(layers, len(WINDOWS))

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
        counts = torch.cat(distinct, dim=1)[..., None]
        ones = torch.ones_like(counts)
        self._sums.add(where, tokens.groups, places.group, places.length[:, None], distinct=counts, windows=ones)

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
        distinct, windows = (self._sums.array(name, labels, 1)[..., 0, :] for name in ("distinct", "windows"))
        return distinct, counted(windows)


@dataclass(frozen=True)
class WindowSlots:
    """Places of the tokens of a batch among windows, the same in every layer."""

    origin: torch.Tensor  # int [batch, 1]: position at which the longest window of each row's first token starts
    slot: torch.Tensor  # int [batch, position]: offset of each token from there; that of padding is `slots`
    slots: int
    group: torch.Tensor  # int [windows of all lengths]: group of every window; padding's if it is not complete
    length: torch.Tensor  # int [windows of all lengths]: index of its length among WINDOWS
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
        groups, lengths = [], []
        for index, size in enumerate(WINDOWS):  # a window has the group of its last token, and PADDING is 0
            groups.append((group_at[:, size - 1 :: size] * read[:, ::size]).flatten())
            lengths.append(torch.full_like(groups[-1], index))
        places = torch.arange(longest, device=origin.device)
        last = (1 + torch.where(tokens.real, tokens.position, -1).amax(dim=1, keepdim=True)) // longest * longest
        still_open = (last - origin).clamp(0, slots - longest) + places
        group, length = torch.cat(groups), torch.cat(lengths)
        return WindowSlots(origin, slot, slots, group, length, origin + places, last, still_open)
