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

Indices = int | list[list[int]]
"""The same as indices of labels: one for all tokens of a pass, or one a token."""


@dataclass(eq=False)
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


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass as the host knows it, no tensor looked at: a decode step has no time for more.

    batch, width  sequences side by side, and columns of each
    past          columns that the cache held before
    tokens        int [batch, position], or None where embeddings were given
    keys          [batch, past + position], nonzero for the real columns; None when all are
    label         indices of its labels
    thread        the sequences it reads
    """

    batch: int
    width: int
    past: int
    device: torch.device
    tokens: torch.Tensor | None
    keys: torch.Tensor | None
    label: Indices
    thread: _Thread

    @property
    def is_decode(self) -> bool:
        """Whether it is one token a sequence, on a cache."""
        return self.width == 1 and self.past > 0

    def goes_on(self, earlier: Pass) -> bool:
        """Whether this is the decode step right after an earlier one, row by row."""
        return (
            self.is_decode
            and self.thread is earlier.thread
            and self.past == earlier.past + earlier.width
            and (self.keys is None, self.tokens is None) == (earlier.keys is None, earlier.tokens is None)
        )


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
        counts = self._tokens[1:].tolist() + [0] * len(self.labels)
        return dict(zip(self.labels, counts, strict=False))

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        """The decoder is about to run on these arguments. Raises UnreadableMask and MisshapenLabels."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        tokens, cache, mask = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        shaped = tokens if tokens is not None else given["inputs_embeds"]
        (batch, width), device = shaped.shape[:2], shaped.device
        past = int(cache.get_seq_length()) if cache is not None else 0
        _refuse_packed(given)
        keys, label = _keys(mask, batch, past + width), self._indices(batch, width)
        self._open = self._follow(cache, past, batch, device)
        self.forwards += 1
        self.columns += batch * width
        return Pass(batch, width, past, device, tokens, keys, label, self._open)

    def close(self, cache: Cache | None) -> None:
        """After the decoder ran and left its state in this cache, or in none."""
        if cache is not None and self._open is not None:
            self._threads[cache] = self._open
        self._open = None

    def read(self, passes: Sequence[Pass]) -> Reading:
        """What one pass read, or several decode steps that follow one another: each pass is read once, in order."""
        start, end, thread, device = passes[0], passes[-1], passes[0].thread, passes[0].device
        width = sum(each.width for each in passes)
        if thread.columns != start.past:
            thread.first = torch.full_like(thread.first, NEVER)
        thread.columns = end.past + end.width
        keys = None if end.keys is None else end.keys.to(device).bool()
        if keys is None:
            real = torch.ones(start.batch, width, dtype=torch.bool, device=device)
            position = torch.arange(start.past, start.past + width, device=device).expand(start.batch, -1)
        else:
            held = [each.keys[:, -each.width :] for each in passes if each.keys is not None]
            real = torch.cat(held, dim=1).to(device).bool()
            position = (keys[:, : start.past].sum(1, keepdim=True) + real.cumsum(1)) - 1
        tokens = None if start.tokens is None else _joined([each.tokens for each in passes])
        fills = start.is_decode and start.batch > 1 and tokens is not None and self._pad_token is not None
        if fills and tokens is not None:
            real = real & ~self._fillers(thread, tokens)
        whole = (keys is None and not fills) or (device.type == "cpu" and bool(real.all()))
        thread.first = torch.minimum(thread.first, torch.where(real, position, NEVER).amin(dim=1))
        label, present = self._label(passes)
        row = torch.where(real, 1 + label, PADDING)
        group = torch.where(real, 1 + label * FOLDS + (thread.sequence % FOLDS)[:, None], PADDING)
        self._count(row)
        self._mix_in(tokens, thread.sequence, position, real)
        return Reading(
            real=real,
            position=position,
            row=row,
            group=group,
            first=thread.first,
            keys=None if keys is not None and device.type == "cpu" and bool(keys.all()) else keys,
            past=start.past,
            labels=len(self.labels),
            present=present,
            carry=thread.carry,
            whole=whole,
            decode=start.is_decode,
        )

    def _follow(self, cache: Cache | None, past: int, batch: int, device: torch.device) -> _Thread:
        """What is known of this cache, or new sequences where nothing is: a cache that was empty or begun elsewhere."""
        known = self._threads.get(cache) if past and cache is not None else None
        if known is not None and len(known.sequence) == batch:
            return known
        sequence = torch.arange(self.sequences, self.sequences + batch, device=device)
        self.sequences += batch
        return _Thread(past, sequence, torch.full_like(sequence, NEVER), torch.zeros_like(sequence, dtype=torch.bool))

    def _fillers(self, thread: _Thread, tokens: torch.Tensor) -> torch.Tensor:
        """bool [batch, position]: what `generate` only fills in, the row having ended before the others did.

        A row is over from an end token on for as long as padding follows: until the first token that is neither.
        """
        ends = torch.isin(tokens, torch.tensor(self._end_tokens, device=tokens.device))
        steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        ended = torch.where(ends, steps, 0).cummax(dim=1).values
        began = torch.where(ends | (tokens == self._pad_token), -1, steps).cummax(dim=1).values
        over = torch.where(ended > 0, ended > began, thread.ended[:, None] & (began < 0))
        before = torch.cat([thread.ended[:, None], over[:, :-1]], dim=1)
        thread.ended = over[:, -1]
        return before & (tokens == self._pad_token)

    def _indices(self, batch: int, width: int) -> Indices:
        """The current label as indices. Raises MisshapenLabels."""
        if isinstance(self.label, str):
            return self._index(self.label)
        names = [[row] * width if isinstance(row, str) else list(row) for row in self.label]
        if len(names) != batch or any(len(row) != width for row in names):
            lengths = ", ".join(str(length) for length in sorted({len(row) for row in names}))
            raise MisshapenLabels(
                f"The labels are for {len(names)} sequences of {lengths} tokens; "
                f"this forward pass reads {batch} of {width}.\n"
                "Give one name, one name a sequence, or one name a token of this pass (padding included)."
            )
        return [[self._index(name) for name in row] for row in names]

    def _index(self, label: str) -> int:
        if label not in self.labels:
            self.labels.append(label)
        return self.labels.index(label)

    def _label(self, passes: Sequence[Pass]) -> tuple[Any, tuple[int, ...]]:
        """Index of every token's label (one number where they agree), and the labels that occur."""
        first = passes[0].label
        if isinstance(first, int) and all(each.label == first for each in passes):
            return first, (first,)
        rows: list[list[int]] = [[] for _ in range(passes[0].batch)]
        for each in passes:
            of_pass = [[each.label] * each.width] * each.batch if isinstance(each.label, int) else each.label
            for row, more in zip(rows, of_pass, strict=True):
                row += more
        return torch.tensor(rows, device=passes[0].device), tuple(sorted({index for row in rows for index in row}))

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


def _joined(tokens: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return torch.cat([each for each in tokens if each is not None], dim=1)


def _keys(mask: Any, batch: int, columns: int) -> torch.Tensor | None:
    """[batch, column], nonzero for the real columns by this attention_mask; None where there is no padding."""
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
    return mask


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
