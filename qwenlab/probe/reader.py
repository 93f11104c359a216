"""Follows the forward passes of one model from call to call, and says what each of them reads."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache

from qwenlab.errors import MisshapenLabels, UnreadableMask
from qwenlab.probe.reading import FOLDS, NEVER, PADDING, Reading

Label = str | Sequence[str] | Sequence[Sequence[str]]
"""What tokens are called: one name, one a sequence, or one a token."""


@dataclass
class _Thread:
    """The sequences of one cache, as far as they were read.

    columns   of the cache; when it holds another number the next time, it was cropped in between
    sequence  int [batch]: number of each sequence in reading order
    first     int [batch]: as in Reading
    ended     bool [batch]: rows whose newest token ends a text in `generate`
    """

    columns: int
    sequence: torch.Tensor
    first: torch.Tensor
    ended: torch.Tensor
    carry: dict[Any, Any] = field(default_factory=dict)


class Reader:
    """Follows the forward passes of one decoder, by their caches.

    end_tokens, pad_token  what ends a row of `generate`, and what fills it from there on
    """

    def __init__(self, decoder: nn.Module, end_tokens: Sequence[int], pad_token: int | None) -> None:
        self.label: Label = "all"
        self.labels: list[str] = []
        self.forwards = 0
        self.columns = 0
        self.sequences = 0
        self.fingerprint = torch.zeros((), dtype=torch.int64)
        self._tokens = torch.zeros(1, dtype=torch.int64)
        self._names = [name for name in inspect.signature(decoder.forward).parameters if name != "self"]
        self._end_tokens, self._pad_token = tuple(end_tokens), pad_token
        self._threads: WeakKeyDictionary[Cache, _Thread] = WeakKeyDictionary()
        self._open: _Thread | None = None

    @property
    def tokens(self) -> dict[str, int]:
        """Real tokens read, by label."""
        counts = self._tokens[1:].tolist()
        return dict(zip(self.labels, counts, strict=False))

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reading:
        """The decoder is about to run on these arguments. Raises UnreadableMask and MisshapenLabels."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        tokens, cache, mask = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        shaped = tokens if tokens is not None else given["inputs_embeds"]
        (batch, width), device = shaped.shape[:2], shaped.device
        past = int(cache.get_seq_length()) if cache is not None else 0
        _refuse_packed(given)
        keys = _keys(mask, batch, past + width)
        keys = None if keys is None else keys.to(device)
        row, present = self._rows(batch, width, device)

        thread = self._follow(cache, past, batch, device)
        if keys is None:
            real = torch.ones(batch, width, dtype=torch.bool, device=device)
            position = torch.arange(past, past + width, device=device).expand(batch, -1)
        else:
            real, position = keys[:, -width:], (keys.long().cumsum(1) - 1)[:, -width:]
        if past and width == 1 and batch > 1 and tokens is not None:
            real = real & ~self._filler(thread, tokens[:, 0])[:, None]
        thread.columns = past + width
        thread.first = torch.minimum(thread.first, torch.where(real, position, NEVER).amin(dim=1))
        row = torch.where(real, row, PADDING)
        group = torch.where(real, 1 + (row - 1) * FOLDS + (thread.sequence % FOLDS)[:, None], PADDING)
        self._open = thread
        self.forwards += 1
        self.columns += batch * width
        self._count(row)
        self._mix_in(tokens, thread.sequence, position, real)
        return Reading(real, position, row, group, thread.first, keys, past, len(self.labels), present, thread.carry)

    def close(self, cache: Cache | None) -> None:
        """After the decoder ran and left its state in this cache, or in none."""
        if cache is not None and self._open is not None:
            self._threads[cache] = self._open
        self._open = None

    def _follow(self, cache: Cache | None, past: int, batch: int, device: torch.device) -> _Thread:
        """What is known of this cache, or new sequences where nothing is: a cache that was empty or begun elsewhere."""
        known = self._threads.get(cache) if past and cache is not None else None
        if known is not None and len(known.sequence) == batch:
            if known.columns != past:
                known.first = torch.full_like(known.first, NEVER)
            return known
        sequence = torch.arange(self.sequences, self.sequences + batch, device=device)
        self.sequences += batch
        return _Thread(past, sequence, torch.full_like(sequence, NEVER), torch.zeros_like(sequence, dtype=torch.bool))

    def _filler(self, thread: _Thread, token: torch.Tensor) -> torch.Tensor:
        """bool [batch]: rows that `generate` only fills, because they ended before the others did."""
        if self._pad_token is None:
            return torch.zeros_like(thread.ended)
        filler = thread.ended & (token == self._pad_token)
        thread.ended = filler
        for end_token in self._end_tokens:
            thread.ended = thread.ended | (token == end_token)
        return filler

    def _rows(self, batch: int, width: int, device: torch.device) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Row of every token by the current label, and the labels that occur."""
        if isinstance(self.label, str):
            index = self._index(self.label)
            return torch.full((batch, width), 1 + index, device=device), (index,)
        names = [[row] * width if isinstance(row, str) else list(row) for row in self.label]
        if len(names) != batch or any(len(row) != width for row in names):
            lengths = ", ".join(str(length) for length in sorted({len(row) for row in names}))
            raise MisshapenLabels(
                f"The labels are for {len(names)} sequences of {lengths} tokens; "
                f"this forward pass reads {batch} of {width}.\n"
                "Give one name, one name a sequence, or one name a token of this pass (padding included)."
            )
        indices = [[self._index(name) for name in row] for row in names]
        return 1 + torch.tensor(indices, device=device), tuple(sorted({index for row in indices for index in row}))

    def _index(self, label: str) -> int:
        if label not in self.labels:
            self.labels.append(label)
        return self.labels.index(label)

    def _count(self, row: torch.Tensor) -> None:
        counts = torch.zeros(1 + len(self.labels), dtype=torch.int64, device=row.device)
        counts[: len(self._tokens)] = self._tokens
        self._tokens = counts.index_add_(0, row.flatten(), torch.ones_like(row.flatten()))

    def _mix_in(
        self, tokens: torch.Tensor | None, sequence: torch.Tensor, position: torch.Tensor, real: torch.Tensor
    ) -> None:
        """Add up a hash of (sequence, position, token): the same however tokens are fed, and without a host sync."""
        if tokens is None:
            return
        mixed = (tokens + 1) * 0x9E3779B97F4A7C1 + position * 0x2545F4914F6CDD1 + sequence[:, None] * 0x5851F42D4C957F2
        mixed = (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B
        total = torch.where(real, mixed ^ (mixed >> 32), 0).sum()
        self.fingerprint = self.fingerprint.to(total.device) + total


def _keys(mask: Any, batch: int, columns: int) -> torch.Tensor | None:
    """bool [batch, column]: the real columns by this attention_mask, or None where there is no padding."""
    if isinstance(mask, dict) and "full_attention" in mask:
        # `generate` makes masks beforehand for a static cache; in its batches the last query sees every real key.
        mask = mask["full_attention"]
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            mask = mask[:, 0, -1, :columns]
            mask = mask if mask.dtype == torch.bool else mask == 0  # eager adds its mask to the scores
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape != (batch, columns):
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UnreadableMask(
            f"The attention_mask is {shape}; "
            f"probes tell padding apart by one of [batch, past + position] = [{batch}, {columns}].\n"
            "Pass that mask (1 for real tokens, 0 for padding), or none for a batch without padding."
        )
    return mask.bool()


def _refuse_packed(given: dict[str, Any]) -> None:
    """Refuse rows of several sequences: transformers is told of them, or sees positions jump without mask and cache."""
    positions = given.get("position_ids")
    told = given.get("cu_seq_lens_q") is not None
    if positions is not None and given.get("attention_mask") is None and given.get("past_key_values") is None:
        text = positions[0] if positions.ndim == 3 and positions.shape[0] == 4 else positions
        told = told or (text.ndim == 2 and bool((text.diff(dim=-1) != 1).any()))
    if told:
        raise UnreadableMask(
            "This forward pass packs several sequences into a row (cu_seq_lens_q, or position_ids that start again).\n"
            "Probes need one sequence a row: pass a padded batch with its attention_mask."
        )
