"""What a forward pass reads: which columns are real tokens, where in their sequences, and under which labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

FOLDS = 8
"""Sequences are dealt into this many folds in reading order, so that intervals can be made from bounded memory."""

PADDING = 0
"""The group and the row of tokens that are not counted."""

NEVER = 2**62
"""The position of a token that was never read."""


@dataclass(frozen=True)
class Reading:
    """The tokens of one forward pass, or of several decode steps joined.

    real       bool [batch, position]   a token of the text, not padding
    position   int [batch, position]    index of the token in its own sequence, padding not counted
    row        int [batch, position]    1 + index of its label; 0 for padding
    group      int [batch, position]    1 + label * FOLDS + fold; 0 for padding
    first      int [batch]              position of the first token of each sequence that was read, without a gap since
    keys       bool [batch, past + position]  real columns of the cache, or None when all are
    past       columns that the cache held before
    labels     number of labels so far; `present` are the indices of those that this reading may have
    carry      what probes keep of these sequences from call to call
    """

    real: torch.Tensor
    position: torch.Tensor
    row: torch.Tensor
    group: torch.Tensor
    first: torch.Tensor
    keys: torch.Tensor | None
    past: int
    labels: int
    present: tuple[int, ...]
    carry: dict[Any, Any] = field(repr=False)

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return self.real.shape[0]

    @property
    def width(self) -> int:
        """Columns of each sequence."""
        return self.real.shape[1]

    @property
    def is_decode(self) -> bool:
        """Whether it is one token a sequence, on a cache."""
        return self.width == 1 and self.past > 0

    @property
    def groups(self) -> int:
        """Number of groups, padding's included."""
        return 1 + self.labels * FOLDS

    @cached_property
    def membership(self) -> torch.Tensor:
        """float64 [group, batch * position]: 1 where the token is of the group; its product with values sums them."""
        groups = torch.arange(self.groups, device=self.group.device)
        return (groups[:, None] == self.group.flatten()).double()

    @cached_property
    def begin(self) -> torch.Tensor:
        """int [batch, 1]: position of each row's first real token, NEVER where it has none."""
        return torch.where(self.real, self.position, NEVER).amin(dim=1, keepdim=True)

    @cached_property
    def idle(self) -> torch.Tensor:
        """bool [batch]: rows without a real token."""
        return ~self.real.any(dim=1)

    @cached_property
    def before(self) -> torch.Tensor:
        """int [batch, position]: 1 + column of the real token before each; 0 where that was not in this call."""
        columns = torch.arange(1, self.width + 1, device=self.real.device)
        newest = torch.where(self.real, columns, 0).cummax(dim=1).values
        return torch.nn.functional.pad(newest[:, :-1], (1, 0))

    @cached_property
    def follows(self) -> torch.Tensor:
        """bool [batch, position]: real tokens whose predecessor was read too, in this call or the one before."""
        return self.real & (self.position > self.first[:, None])

    @cached_property
    def last(self) -> torch.Tensor:
        """int [batch]: column of the last real token of each row (0 where a row has none)."""
        columns = torch.arange(self.width, device=self.real.device)
        return torch.where(self.real, columns, 0).amax(dim=1)

    @cached_property
    def last_group(self) -> torch.Tensor:
        """int [batch]: group of each row's last real token, padding's where it has none."""
        return self.group.gather(1, self.last[:, None])[:, 0]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Reading]:
        return {self.real.device: self}

    def on(self, device: torch.device) -> Reading:
        """The same reading on another device, for models split over several."""
        if device not in self._elsewhere:
            names = ("real", "position", "row", "group", "first")
            moved = {name: getattr(self, name).to(device) for name in names}
            self._elsewhere[device] = replace(self, **moved, keys=None if self.keys is None else self.keys.to(device))
        return self._elsewhere[device]

    def goes_on(self, earlier: Reading) -> bool:
        """Whether this is the decode step right after an earlier one, row by row."""
        return self.is_decode and self.carry is earlier.carry and self.past == earlier.past + earlier.width

    @staticmethod
    def joined(readings: Sequence[Reading]) -> Reading:
        """Decode steps that follow one another, as one reading."""
        start, end = readings[0], readings[-1]
        names = ("real", "position", "row", "group")
        columns: dict[str, Any] = {
            name: torch.cat([getattr(reading, name) for reading in readings], dim=1) for name in names
        }
        present = tuple(sorted(set().union(*(reading.present for reading in readings))))
        return replace(end, **columns, past=start.past, present=present)
