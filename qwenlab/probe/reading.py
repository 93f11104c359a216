"""Which tokens the current forward pass reads: padding, positions, sequences and labels, followed across calls."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qwenlab.errors import MisshapenLabels, UnreadableMask

FOLDS = 8
"""Sequences are dealt into this many folds in reading order, so that intervals can be made from bounded memory."""

PADDING = 0
"""The group and the row of tokens that are not counted."""


@dataclass(frozen=True)
class Reading:
    """The tokens of one forward pass, or of several decode steps joined.

    real      bool [batch, position]   a token of the text, not padding
    position  int [batch, position]    index of the token in its own sequence, padding not counted
    row       int [batch, position]    1 + index of its label; 0 for padding
    group     int [batch, position]    1 + label * FOLDS + fold; 0 for padding
    keys      bool [batch, past + position]  real columns of the cache, or None when all are
    """

    real: torch.Tensor
    position: torch.Tensor
    row: torch.Tensor
    group: torch.Tensor
    keys: torch.Tensor | None
    past: int
    labels: int
    present: tuple[int, ...]
    continued: bool
    carry: dict[Any, Any] = field(repr=False)

    @property
    def batch(self) -> int:
        return self.real.shape[0]

    @property
    def width(self) -> int:
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
            moved = {name: getattr(self, name).to(device) for name in ("real", "position", "row", "group")}
            keys = None if self.keys is None else self.keys.to(device)
            self._elsewhere[device] = replace(self, **moved, keys=keys)
        return self._elsewhere[device]

    @staticmethod
    def joined(readings: Sequence[Reading]) -> Reading:
        """Decode steps that follow one another, as one reading."""
        first, last = readings[0], readings[-1]
        columns = {
            name: torch.cat([getattr(reading, name) for reading in readings], dim=1)
            for name in ("real", "position", "row", "group")
        }
        present = tuple(sorted(set().union(*(reading.present for reading in readings))))
        return replace(first, **columns, keys=last.keys, labels=last.labels, present=present)


@dataclass
class _Continuation:
    """What is kept of a cache between two forward passes."""

    columns: int
    sequence: torch.Tensor
    ended: torch.Tensor
    carry: dict[Any, Any]


class Reader:
    """Follows the forward passes of one decoder and says what each reads."""

    def __init__(self, decoder: nn.Module, end_tokens: Sequence[int], pad_token: int | None) -> None:
        self.labels: list[str] = []
        self.label: Any = "all"
        self.forwards = 0
        self.columns = 0
        self.sequences = 0
        self.fingerprint = torch.zeros((), dtype=torch.int64)
        self._names = [name for name in inspect.signature(decoder.forward).parameters if name != "self"]
        self._end_tokens, self._pad_token = tuple(end_tokens), pad_token
        self._known: WeakKeyDictionary[Any, _Continuation] = WeakKeyDictionary()
        self._open: _Continuation | None = None

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
        """Before the decoder runs on these arguments."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if given.get("cu_seq_lens_q") is not None:
            raise UnreadableMask(
                "This forward pass packs several sequences into a row (cu_seq_lens_q).\n"
                "Probes need one sequence a row: pass a padded batch with its attention_mask."
            )
        tokens, embedded = given.get("input_ids"), given.get("inputs_embeds")
        shaped = tokens if tokens is not None else embedded
        batch, width, device = shaped.shape[0], shaped.shape[1], shaped.device
        cache = given.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        keys = self._keys(given.get("attention_mask"), batch, past + width)
        if keys is None:
            real = torch.ones(batch, width, dtype=torch.bool, device=device)
            position = torch.arange(past, past + width, device=device).expand(batch, -1)
        else:
            keys = keys.to(device)
            real, position = keys[:, -width:], (keys.long().cumsum(1) - 1)[:, -width:]

        continuation = self._continue(cache, past, batch, device)
        if past and width == 1 and tokens is not None:
            real = real & ~self._filler(continuation, tokens[:, 0])[:, None]
        continuation.columns = past + width
        row, present = self._rows(batch, width, device)
        fold = (continuation.sequence % FOLDS)[:, None]
        group = torch.where(real, 1 + (row - 1) * FOLDS + fold, PADDING)
        row = torch.where(real, row, PADDING)
        self._open = continuation
        self.forwards += 1
        self.columns += batch * width
        self._note_tokens(tokens, continuation.sequence, position, real)
        return Reading(
            real, position, row, group, keys, past, len(self.labels), present, continued=past > 0, carry=continuation.carry
        )

    def close(self, cache: Any) -> None:
        """After the decoder ran and gave back this cache, or None."""
        if cache is not None and self._open is not None:
            self._known[cache] = self._open
        self._open = None

    def _keys(self, mask: Any, batch: int, columns: int) -> torch.Tensor | None:
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape != (batch, columns):
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise UnreadableMask(
                f"The attention_mask is {shape}; probes tell padding apart by one of [batch, past + position] = "
                f"[{batch}, {columns}].\nPass that mask (1 for real tokens, 0 for padding), or none for a batch without padding."
            )
        return mask.bool()

    def _continue(self, cache: Any, past: int, batch: int, device: torch.device) -> _Continuation:
        """What is known of this cache, or new sequences where nothing is, or where it was cropped since."""
        known = self._known.get(cache) if past and cache is not None else None
        if known is not None and len(known.sequence) == batch:
            if known.columns != past:
                known.carry = {}
            return known
        sequence = torch.arange(self.sequences, self.sequences + batch, device=device)
        self.sequences += batch
        return _Continuation(past, sequence, torch.zeros(batch, dtype=torch.bool, device=device), {})

    def _filler(self, continuation: _Continuation, token: torch.Tensor) -> torch.Tensor:
        """bool [batch]: rows that `generate` only fills, because they ended before the others did."""
        if self._pad_token is None:
            return torch.zeros_like(continuation.ended)
        filler = continuation.ended & (token == self._pad_token)
        end = filler
        for end_token in self._end_tokens:
            end = end | (token == end_token)
        continuation.ended = end
        return filler

    def _rows(self, batch: int, width: int, device: torch.device) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Row of every token by the current label: one name, a name a sequence, or a name a token."""
        label = self.label
        if isinstance(label, str):
            index = self._index(label)
            return torch.full((batch, width), 1 + index, device=device), (index,)
        names = [list(row) if not isinstance(row, str) else [row] * width for row in label]
        if len(names) != batch or any(len(row) != width for row in names):
            raise MisshapenLabels(
                f"The labels are for {len(names)} sequences of {sorted({len(row) for row in names})} tokens; this forward pass "
                f"reads {batch} of {width}.\nGive one name, one name a sequence, or one name a token of this pass."
            )
        indices = [[self._index(name) for name in row] for row in names]
        present = tuple(sorted({index for row in indices for index in row}))
        return 1 + torch.tensor(indices, device=device), present

    def _index(self, label: str) -> int:
        if label not in self.labels:
            self.labels.append(label)
        return self.labels.index(label)

    def _note_tokens(
        self, tokens: torch.Tensor | None, sequence: torch.Tensor, position: torch.Tensor, real: torch.Tensor
    ) -> None:
        """Add up a hash of (sequence, position, token): the same however the tokens are fed, and without a host sync."""
        if tokens is None:
            return
        mixed = (tokens + 1) * 0x9E3779B97F4A7C1 + position * 0x2545F4914F6CDD1 + sequence[:, None] * 0x5851F42D4C957F2
        mixed = (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B
        total = torch.where(real, mixed ^ (mixed >> 32), 0).sum()
        self.fingerprint = self.fingerprint.to(total.device) + total
