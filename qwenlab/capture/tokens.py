"""The tokens of a forward pass: which columns are real tokens, their positions in their sequences, and their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from qwenlab.capture.sampled_steps import drawn
from qwenlab.errors import BadArgument

FOLDS = 8
"""Sequences are assigned to this many folds in reading order, so that intervals can be computed in bounded memory."""

PADDING = 0
"""The group and the row of tokens that are not counted."""

NEVER = 2**62
"""The position of a token that was never read."""

_BY_SAMPLE = "Read them by tokens.sample(self.every), or leave their names out of sampled_sites."

T = TypeVar("T")


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one forward pass, or of consecutive decode steps.

    real       bool [batch, position]   a token of the text, not padding
    position   int [batch, position]    index of the token in its own sequence, padding not counted
    row        int [batch, position]    1 + index of its label; 0 for padding
    group      int [batch, position]    1 + label * FOLDS + fold; 0 for padding
    first      int [batch]              position of the first token of each sequence that was read, with no gap since
    numbers    [batch]                  number of each sequence in reading order
    keys       bool [batch, past + position]  real columns of the cache, or None when all are
    past       columns of the cache before this pass
    labels     number of labels so far; `present` are the indices of those that these tokens may have
    carry      state that probes carry from call to call for these sequences
    whole      whether all columns are known to be real, without a device sync
    decode     whether these are decode steps
    ids        int [batch, position]: token ids; None if the model got embeddings
    kept       int [position]: index of each decode step among those with sampled values; None where all have them
    kept_every the `every` of those samples
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
    ids: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    kept_every: tuple[int, ...] = ()

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.real.shape[0]

    @property
    def width(self) -> int:
        """Number of columns of each sequence."""
        return self.real.shape[1]

    @property
    def groups(self) -> int:
        """Number of groups, padding's included."""
        return 1 + self.labels * FOLDS

    @property
    def span(self) -> range:
        """The groups from the first to the last that these tokens may have, without padding's."""
        return range(1 + min(self.present) * FOLDS, 1 + (1 + max(self.present)) * FOLDS)

    def masked(self, values: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """Return values [batch, position, ...] (from this axis on) with zeros at padding, even where it is NaN.

        Raises BadArgument for values that were captured at sampled decode steps only.
        """
        if self.kept is not None and values.shape[axis + 1] != self.width:
            shown = f"These values are those of {values.shape[axis + 1]} decode steps, and {self.width} were read."
            raise BadArgument(f"{shown}\n{_BY_SAMPLE}")
        if self.whole:
            return values
        return torch.where(self.real.reshape(*self.real.shape, *[1] * (values.ndim - axis - 2)), values, 0)

    def labelled(self, label: int) -> torch.Tensor | None:
        """Return bool [batch, position]: the tokens of one label; None when all are."""
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
        """bool [batch, position]: real tokens whose predecessor was read too, in this call or an earlier one."""
        return self.real & (self.position > self.first[:, None])

    @cached_property
    def last(self) -> torch.Tensor:
        """int [batch]: column of the last real token of each row; 0 where a row has none."""
        columns = torch.arange(self.width, device=self.real.device)
        return torch.where(self.real, columns, 0).amax(dim=1)

    @cached_property
    def last_group(self) -> torch.Tensor:
        """int [batch]: group of each row's last real token, padding's where it has none."""
        return self.group.gather(1, self.last[:, None])[:, 0]

    def carried(self, name: object, layers: int, like: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """Return the state carried under a name: [layers, ...] like `like` [layer, ...], initially all `fill`."""
        if name not in self.carry:
            self.carry[name] = like.new_full((layers, *like.shape[1:]), fill)
        return self.carry[name]

    def sample(self, every: int) -> TokenSample:
        """Sample one token per block of `every` consecutive tokens."""
        return self.once((TokenSample, every), lambda: TokenSample.of_tokens(self, every))

    @cached_property
    def _cache(self) -> dict[Any, Any]:
        return {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Return `make()`, computed for the first layer that calls this and cached for the others."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    @cached_property
    def _by_device(self) -> dict[torch.device, TokenBatch]:
        return {self.real.device: self}

    def on(self, device: torch.device) -> TokenBatch:
        """Return the same tokens on another device, for models split over several."""
        if device not in self._by_device:
            names = ("real", "position", "row", "group", "first")
            moved = {name: getattr(self, name).to(device) for name in names}
            others = {name: getattr(self, name) for name in ("keys", "ids", "kept")}
            moved |= {name: value.to(device) for name, value in others.items() if value is not None}
            self._by_device[device] = replace(self, **moved)
        return self._by_device[device]


def added(total: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Return the sum of two tensors [], on the device of the second.

    A total on the host enters as a number, without a copy that would make the host wait for the device.
    """
    return (total if total.device.type == "cpu" else total.to(more.device)) + more


def key_positions(tokens: TokenBatch, columns: int) -> torch.Tensor:
    """Return int [batch, column]: position of each key in its own sequence, -1 for padding and unwritten columns."""
    if tokens.keys is None:
        return torch.arange(columns, device=tokens.position.device).expand(tokens.batch, -1)
    keys = tokens.keys[:, :columns]
    position = torch.where(keys, keys.long().cumsum(1) - 1, -1)
    return torch.nn.functional.pad(position, (0, columns - keys.shape[1]), value=-1)


@dataclass(frozen=True)
class TokenSample:
    """One token per block of n consecutive tokens of a sequence, independent of the calls that read them.

    columns  int [batch, slot]: their columns in this call
    read     the tokens of the call; None if all of them are sampled
    tokens   the sampled tokens as a batch; a slot whose token is not in this call is padding
    every    n; None for tokens at chosen positions
    """

    columns: torch.Tensor
    read: TokenBatch | None
    tokens: TokenBatch
    every: int | None = None

    def of(self, values: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """Select their values: [batch, slot, ...] of [batch, position, ...], both from this axis on.

        In decode steps, values may be those of the captured steps only.
        """
        if self.read is None:
            return values
        width = values.shape[axis + 1]
        if width not in self._places:
            begins = torch.arange(len(self.columns), device=self.columns.device)[:, None] * width
            self._places[width] = (begins + self.columns_among(width)).flatten()
        if len(self.columns) == 1:
            return values.index_select(axis + 1, self._places[width])
        flat = values.flatten(axis, axis + 1).index_select(axis, self._places[width])
        return flat.unflatten(axis, self.columns.shape)

    @cached_property
    def _places(self) -> dict[int, torch.Tensor]:
        """By width, int [batch * slot]: their columns, with sequence and position flattened into one axis."""
        return {}

    def columns_among(self, width: int) -> torch.Tensor:
        """Return int [batch, slot]: their columns among `width` captured ones.

        Raises BadArgument if others than these tokens were captured.
        """
        if self.read is None or self.read.kept is None or width == self.read.width:
            return self.columns
        if self.every not in self.read.kept_every:
            raise BadArgument(
                f"These values are those of decode steps that probes sample, with every={list(self.read.kept_every)}; "
                f"they cannot be read at other tokens{'' if self.every is None else f', with every={self.every}'}.\n"
                + _BY_SAMPLE
            )
        return self.read.kept[self.columns]

    def part(self, slots: slice) -> TokenSample:
        """Select some of these slots."""
        names = ("real", "position", "row", "group")
        sampled: dict[str, Any] = {name: getattr(self.tokens, name)[:, slots] for name in names}
        return TokenSample(self.columns[:, slots], self.read, replace(self.tokens, **sampled), self.every)

    @staticmethod
    def of_tokens(tokens: TokenBatch, every: int) -> TokenSample:
        """Sample one token per block of `every` tokens."""
        if every == 1:
            columns = torch.arange(tokens.width, device=tokens.real.device).expand(tokens.batch, -1)
            return TokenSample(columns, None, tokens, every)
        if tokens.whole and tokens.keys is None:  # else a row may have begun later than its columns do
            return replace(TokenSample._at_columns(tokens, *_known_columns(tokens, every)), every=every)
        slots = torch.arange(tokens.width // every + 2, device=tokens.position.device)  # as many as there can be
        sequence = torch.arange(tokens.numbers.start, tokens.numbers.stop, device=slots.device)[:, None]
        # A row without a real token begins at NEVER, and must not overflow.
        wanted = drawn(tokens.begin.clamp_max(2**31) // every + slots, every, sequence)
        return replace(TokenSample.at(tokens, wanted), every=every)

    @staticmethod
    def at(tokens: TokenBatch, positions: torch.Tensor) -> TokenSample:
        """Select the tokens at these rising positions [slot] or [batch, slot]; padding for those not in the batch."""
        wanted = positions.expand(tokens.batch, -1).contiguous()
        # Positions never decrease along a row, so only the first column that reaches the wanted position can have it.
        rising = torch.where(tokens.real, tokens.position, -1).cummax(dim=1).values
        columns = torch.searchsorted(rising, wanted).clamp_max(tokens.width - 1)
        present = (tokens.position.gather(1, columns) == wanted) & tokens.real.gather(1, columns)
        return TokenSample._at_columns(tokens, columns, present)

    @staticmethod
    def _at_columns(tokens: TokenBatch, columns: torch.Tensor, present: torch.Tensor | None) -> TokenSample:
        """Select columns [batch, slot]; those that are not `present` count as padding. None: all are."""
        real = tokens.real.gather(1, columns) if present is None else present
        position, row, group = (each.gather(1, columns) for each in (tokens.position, tokens.row, tokens.group))
        row, group = (torch.where(real, each, PADDING) for each in (row, group))
        sampled = replace(tokens, real=real, position=position, row=row, group=group, keys=None, whole=present is None)
        return TokenSample(columns, tokens, sampled)


def _known_columns(tokens: TokenBatch, every: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the columns of the sampled tokens if all columns are real, and which of them exist (None: all).

    The host works out which blocks have a token here, and the device where: nothing is copied between them.
    """
    device, begin, end = tokens.real.device, tokens.past, tokens.past + tokens.width
    blocks = np.arange(begin // every, (end - 1) // every + 1)
    position = drawn(blocks, every, np.array(tokens.numbers)[:, None])
    present = (position >= begin) & (position < end)
    used = blocks[present.any(axis=0)]  # without the first or the last block, whose token may lie outside
    sequence = torch.arange(tokens.numbers.start, tokens.numbers.stop, device=device)[:, None]
    first = int(used[0]) if len(used) else 0
    columns = drawn(torch.arange(first, first + len(used), device=device), every, sequence) - begin
    exists = (columns >= 0) & (columns < tokens.width)
    return columns.clamp(0, tokens.width - 1), None if present[:, present.any(axis=0)].all() else exists
