"""What a forward pass reads: which columns are real tokens, where in their sequences, and under which labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

FOLDS = 8
"""Sequences are dealt into this many folds in reading order, so that intervals can be made from bounded memory."""

PADDING = 0
"""The group and the row of tokens that are not counted."""

NEVER = 2**62
"""The position of a token that was never read."""

T = TypeVar("T")


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one forward pass, or of several decode steps that follow one another.

    real       bool [batch, position]   a token of the text, not padding
    position   int [batch, position]    index of the token in its own sequence, padding not counted
    row        int [batch, position]    1 + index of its label; 0 for padding
    group      int [batch, position]    1 + label * FOLDS + fold; 0 for padding
    first      int [batch]              position of the first token of each sequence that was read, without a gap since
    numbers    [batch]                  number of each sequence in reading order
    keys       bool [batch, past + position]  real columns of the cache, or None when all are
    past       columns that the cache held before
    labels     number of labels so far; `present` are the indices of those that this reading may have
    carry      what probes keep of these sequences from call to call
    whole      whether it is known, without asking the device, that all columns are real
    decode     whether these are decode steps
    tokens     int [batch, position]: their ids; None where the model was given embeddings
    """

    real: torch.Tensor
    position: torch.Tensor
    row: torch.Tensor
    group: torch.Tensor
    first: torch.Tensor
    numbers: range
    keys: torch.Tensor | None
    past: int
    labels: int
    present: tuple[int, ...]
    carry: dict[Any, Any] = field(repr=False)
    whole: bool = False
    decode: bool = False
    tokens: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return self.real.shape[0]

    @property
    def width(self) -> int:
        """Columns of each sequence."""
        return self.real.shape[1]

    @property
    def groups(self) -> int:
        """Number of groups, padding's included."""
        return 1 + self.labels * FOLDS

    @cached_property
    def membership(self) -> torch.Tensor:
        """float64 [group, batch * position]: 1 where the token is of the group; its product with values sums them."""
        groups = torch.arange(self.groups, device=self.group.device)
        return (groups[:, None] == self.group.flatten()).double()

    def masked(self, values: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """Values [batch, position, ...] (from this axis on) with zeros in the place of padding, whatever it held."""
        if self.whole:
            return values
        return torch.where(self.real.reshape(*self.real.shape, *[1] * (values.ndim - axis - 2)), values, 0)

    def labelled(self, label: int) -> torch.Tensor | None:
        """bool [batch, position]: the tokens of one label; None when all are."""
        return None if self.whole and self.present == (label,) else self.row == 1 + label

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

    def carried(self, name: object, layers: int, like: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """What is kept from call to call under a name: [layers, ...] like `like` [layer, ...], at first all `fill`."""
        if name not in self.carry:
            self.carry[name] = like.new_full((layers, *like.shape[1:]), fill)
        return self.carry[name]

    def sample(self, every: int) -> TokenSample:
        """One token of every so many that follow one another."""
        return self.once((TokenSample, every), lambda: TokenSample.of_reading(self, every))

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make()` returns, made for the first layer that asks and kept for the others."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, TokenBatch]:
        return {self.real.device: self}

    def on(self, device: torch.device) -> TokenBatch:
        """The same reading on another device, for models split over several."""
        if device not in self._elsewhere:
            names = ("real", "position", "row", "group", "first")
            moved = {name: getattr(self, name).to(device) for name in names}
            keys, tokens = (None if each is None else each.to(device) for each in (self.keys, self.tokens))
            self._elsewhere[device] = replace(self, **moved, keys=keys, tokens=tokens)
        return self._elsewhere[device]


def drawn(block: Any, every: int, sequence: Any = 0) -> Any:
    """Position of the token that stands for the block [every * block, every * (block + 1)) of a sequence.

    Always the first, or any other fixed place, would see a text of that period in one phase only, and of short texts
    their beginning alone. So the place begins in the middle of the block, and moves from block to block by the golden
    ratio, as evenly as can be (Knuth, TAOCP 3, section 6.4), and from sequence to sequence by the square root of two.
    """
    place = (2**31 + block * 2654435769 + sequence * 1779033703) % 2**32
    return every * block + (place * every >> 32)


def key_positions(reading: TokenBatch, columns: int) -> torch.Tensor:
    """int [batch, column]: position of each key in its own sequence, -1 for padding and unwritten columns."""
    if reading.keys is None:
        return torch.arange(columns, device=reading.position.device).expand(reading.batch, -1)
    keys = reading.keys[:, :columns]
    position = torch.where(keys, keys.long().cumsum(1) - 1, -1)
    return torch.nn.functional.pad(position, (0, columns - keys.shape[1]), value=-1)


@dataclass(frozen=True)
class TokenSample:
    """One token of every n that follow one another in a sequence, whatever calls they are read in.

    columns  int [batch, slot]: where they stand in this call
    places   int [batch * slot]: the same where sequence and position are one axis; None for all of them
    reading  what they are; a slot whose token is not in this call is padding
    """

    columns: torch.Tensor
    places: torch.Tensor | None
    reading: TokenBatch

    def of(self, values: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """Their values [batch, slot, ...] of [batch, position, ...], both from this axis on."""
        if self.places is None:
            return values
        return values.flatten(axis, axis + 1).index_select(axis, self.places).unflatten(axis, self.columns.shape)

    def part(self, slots: slice) -> TokenSample:
        """Some of these slots, to ask what they are; values are not taken of a part."""
        names = ("real", "position", "row", "group")
        few: dict[str, Any] = {name: getattr(self.reading, name)[:, slots] for name in names}
        return TokenSample(self.columns[:, slots], None, replace(self.reading, **few))

    @staticmethod
    def of_reading(reading: TokenBatch, every: int) -> TokenSample:
        """The tokens of a reading that stand for their blocks."""
        if every == 1:
            return TokenSample(
                torch.arange(reading.width, device=reading.real.device).expand(reading.batch, -1), None, reading
            )
        known = reading.whole and reading.keys is None  # else a row may have begun later than its columns do
        columns, found = _known_columns(reading, every) if known else _found_columns(reading, every)
        real = reading.real.gather(1, columns) if found is None else found
        position, row, group = (each.gather(1, columns) for each in (reading.position, reading.row, reading.group))
        row, group = (torch.where(real, each, PADDING) for each in (row, group))
        few = replace(reading, real=real, position=position, row=row, group=group, keys=None, whole=found is None)
        row_begins = torch.arange(reading.batch, device=columns.device)[:, None] * reading.width
        return TokenSample(columns, (row_begins + columns).flatten(), few)


def _found_columns(reading: TokenBatch, every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [batch, slot], as many as there can be at most, and which of them hold the token that was drawn."""
    slots = torch.arange(reading.width // every + 2, device=reading.position.device)
    # A row without a real token begins at NEVER, and must not overflow.
    sequence = torch.tensor(list(reading.numbers), device=slots.device)[:, None]
    wanted = drawn(reading.begin.clamp_max(2**31) // every + slots, every, sequence)
    # Positions never fall along a row, so the first column that reaches the wanted one is it or there is none.
    position = torch.where(reading.real, reading.position, -1).cummax(dim=1).values
    columns = torch.searchsorted(position, wanted).clamp_max(reading.width - 1)
    found = (reading.position.gather(1, columns) == wanted) & reading.real.gather(1, columns)
    return columns, found


def _known_columns(reading: TokenBatch, every: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same where all columns are real: their positions are known without asking the device. None: all hold it."""
    blocks = np.arange(reading.past // every, (reading.past + reading.width - 1) // every + 1)
    columns = drawn(blocks, every, np.array(reading.numbers)[:, None]) - reading.past
    found = (columns >= 0) & (columns < reading.width)
    columns, found = columns[:, found.any(axis=0)], found[:, found.any(axis=0)]
    device = reading.real.device
    here = torch.from_numpy(columns.clip(0, reading.width - 1)).to(device)
    return here, None if found.all() else torch.from_numpy(found).to(device)
