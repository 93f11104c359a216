"""Track the sequences of one model from call to call, and describe the tokens that each forward pass reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from qwenlab.capture.forward_pass import CachedSequences, ForwardPass, Indices, Label
from qwenlab.capture.generate_calls import NO_ENDS, GenerateCalls, RowEnds
from qwenlab.capture.masks import MaskChecks, keys_of
from qwenlab.capture.read_columns import ReadColumns
from qwenlab.capture.token_ids import EmbeddedTokens, codes
from qwenlab.capture.tokens import FOLDS, NEVER, PADDING, TokenBatch, added
from qwenlab.capture.tracked_caches import TrackedCaches
from qwenlab.checkpoint.caches import cache_argument, first_cache
from qwenlab.errors import AmbiguousSequences, LabelShapeMismatch


class SequenceTracker:
    """Tracks the sequences that one decoder reads, by their caches.

    calls  the calls of `generate`, from which it learns how rows end and which token pads them; None to read such
           padding as text
    """

    def __init__(self, decoder: nn.Module, calls: GenerateCalls | None = None) -> None:
        self.label: Label = "all"
        self.labels: list[str] = []
        self.columns = 0
        self.sequences = 0
        self.fingerprint = torch.zeros((), dtype=torch.int64)
        self.checks = MaskChecks()
        self.embedded = EmbeddedTokens()
        self.caches = TrackedCaches()
        self._hashed = "tokens"
        self._tokens: torch.Tensor | None = None  # int [1 + label]: padding, and real tokens by label
        cache_argument(type(decoder).forward)  # raises if no argument takes a cache
        own = vars(decoder).get("forward")  # somebody's replacement, which the cache must not keep alive
        self._names = _names_of_class(type(decoder).forward) if own is None else _argument_names(own)
        self._calls = calls
        self._open: CachedSequences | None = None

    @property
    def tokens(self) -> dict[str, int]:
        """Real tokens read, by label."""
        counts = [] if self._tokens is None else self._tokens[1:].tolist()
        return dict(zip(self.labels, counts + [0] * len(self.labels), strict=False))

    @property
    def cropped(self) -> dict[str, int] | None:
        """Of the tokens read, those that were later cropped from their cache, by label; None if that is unknown."""
        return self.caches.cropped_tokens(self.labels)

    @property
    def prompts_hash(self) -> str:
        """A hash of all real tokens read, with their sequences and positions.

        It begins with "tokens:", or with "embeddings:" if a pass got embeddings whose ids are not known.
        """
        return f"{self._hashed}:{int(self.fingerprint) & (2**64 - 1):016x}"

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
        """Describe the forward pass that runs on these arguments. Raises AmbiguousSequences and LabelShapeMismatch."""
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        cache = first_cache(arguments.values())
        shaped = ids if ids is not None else arguments["inputs_embeds"]
        ids = ids if ids is not None else self.embedded.ids_of(shaped)
        (batch, width), device = shaped.shape[:2], shaped.device
        past = int(cache.get_seq_length()) if cache is not None else 0
        keys = keys_of(mask, batch, past + width)
        self.checks.check(arguments, keys, width)
        label, known = self._indices(batch, width), self.caches.known(cache, past, batch)
        ends = self._ends(known)
        if ends.others and batch > 1:
            raise AmbiguousSequences(
                f"Rows of this `generate` may end by {ends.others}, each at another token, and the padding after their "
                "end is not text.\nGenerate these texts one at a time, or let rows end by eos_token_id alone."
            )
        self._open = known or self._begin(past, batch, device)
        self._open.ends, self._open.read.end = ends, past + width
        self.columns += batch * width
        embeddings = shaped if ids is None else None
        if past and width == 1 and ids is not None:
            ids = ids.clone()  # steps are reduced many at a time, and a loop may use one buffer for all
        return ForwardPass(batch, width, past, device, ids, keys, label, self._open, ends, embeddings)

    def close(self, cache: Cache | None) -> None:
        """Remember the sequences of the pass that has ended by the cache of its state, if it has one."""
        if cache is not None and self._open is not None:
            self.caches.remember(cache, self._open)
        self._open = None

    def suspend(self) -> Callable[[], None]:
        """Put the open pass aside, and return the function that takes it up again."""
        sequences, self._open = self._open, None

        def resume() -> None:
            self._open = sequences

        return resume

    def read(self, passes: Sequence[ForwardPass]) -> TokenBatch:
        """Return the tokens of one pass, or of consecutive decode steps. Call it once per pass, in order."""
        start, end, sequences, device = passes[0], passes[-1], passes[0].sequences, passes[0].device
        width = sum(each.width for each in passes)
        if sequences.columns != start.past:
            sequences.first = torch.full_like(sequences.first, NEVER)
            self.caches.cropped.crop(sequences.read, start.past, len(self.labels))
        sequences.columns = end.past + end.width
        keys = None if end.keys is None else end.keys.to(device).bool()
        if keys is None:
            real = torch.ones(start.batch, width, dtype=torch.bool, device=device)
            position = torch.arange(start.past, start.past + width, device=device).expand(start.batch, -1)
        else:
            masks = [each.keys[:, -each.width :] for each in passes if each.keys is not None]
            real = torch.cat(masks, dim=1).to(device).bool()
            position = (keys[:, : start.past].sum(1, keepdim=True) + real.cumsum(1)) - 1
        ids = None if start.ids is None else _joined([each.ids for each in passes])
        padded = start.is_decode and start.batch > 1 and ids is not None and start.ends.pad is not None
        if padded and ids is not None:
            real = real & ~_padding_of_generate(sequences, ids, start.ends)
        whole = (keys is None and not padded) or (device.type == "cpu" and bool(real.all()))
        sequences.first = torch.minimum(sequences.first, torch.where(real, position, NEVER).amin(dim=1))
        label, present = self._label(passes)
        row = torch.where(real, 1 + label, PADDING)
        group = torch.where(real, 1 + label * FOLDS + (sequences.sequence % FOLDS)[:, None], PADDING)
        sequences.read.add(start.past, width, 1 + label if whole and isinstance(label, int) else row)
        self._count(row)
        self._update_fingerprint(passes, sequences.sequence, position, real)
        return TokenBatch(
            real=real,
            position=position,
            row=row,
            group=group,
            first=sequences.first,
            numbers=sequences.numbers,
            keys=None if keys is not None and device.type == "cpu" and bool(keys.all()) else keys,
            past=start.past,
            labels=len(self.labels),
            present=present,
            carry=sequences.carry,
            whole=whole,
            decode=start.is_decode,
            ids=ids,
        )

    def _begin(self, past: int, batch: int, device: torch.device) -> CachedSequences:
        """Begin new sequences."""
        numbers = range(self.sequences, self.sequences + batch)
        self.sequences += batch
        sequence = torch.arange(numbers.start, numbers.stop, device=device)
        first, ended = torch.full_like(sequence, NEVER), torch.zeros_like(sequence, dtype=torch.bool)
        return CachedSequences(past, past, numbers, sequence, first, ended, ReadColumns(batch))

    def _ends(self, known: CachedSequences | None) -> RowEnds:
        """Return how the rows of this pass end: by the `generate` call that began them, else by the model's config."""
        if self._calls is None:
            return NO_ENDS
        return self._calls.take_ends() or (self._calls.default if known is None else known.ends)

    def _indices(self, batch: int, width: int) -> Indices:
        """Return the current label as indices. Raises LabelShapeMismatch."""
        if isinstance(self.label, str):
            return self._index(self.label)
        names = [[row] * width if isinstance(row, str) else list(row) for row in self.label]
        if len(names) != batch or any(len(row) != width for row in names):
            lengths = ", ".join(str(length) for length in sorted({len(row) for row in names}))
            raise LabelShapeMismatch(
                f"The labels are for {len(names)} sequences of {lengths} tokens; "
                f"this forward pass reads {batch} of {width}.\n"
                "Give one name, one name per sequence, or one name per token of this pass (padding included)."
            )
        return [[self._index(name) for name in row] for row in names]

    def _index(self, label: str) -> int:
        if label not in self.labels:
            self.labels.append(label)
        return self.labels.index(label)

    def _label(self, passes: Sequence[ForwardPass]) -> tuple[Any, tuple[int, ...]]:
        """Return the index of every token's label (one integer if all agree), and the labels that occur."""
        first, present, parts = passes[0], set[int](), list[torch.Tensor]()
        if isinstance(first.label, int) and all(each.label == first.label for each in passes):
            return first.label, (first.label,)
        for label, group in groupby(passes, key=lambda each: each.label):
            width = sum(each.width for each in group)
            if isinstance(label, int):  # made on the device, as a list would be copied there
                present.add(label)
                parts.append(torch.full((first.batch, width), label, device=first.device))
            else:
                present.update(index for row in label for index in row)
                parts.append(torch.tensor(label, device=first.device).repeat(1, width // len(label[0])))
        return torch.cat(parts, dim=1), tuple(sorted(present))

    def _count(self, row: torch.Tensor) -> None:
        counts = torch.zeros(1 + len(self.labels), dtype=torch.int64, device=row.device)
        if self._tokens is not None:
            counts[: len(self._tokens)] = self._tokens
        self._tokens = counts.index_add_(0, row.flatten(), torch.ones_like(row.flatten()))

    def _update_fingerprint(
        self, passes: Sequence[ForwardPass], sequence: torch.Tensor, position: torch.Tensor, real: torch.Tensor
    ) -> None:
        """Add a hash of (sequence, position, token): independent of batching, and without a host sync.

        A hash of the embedding replaces a token id that is not known.
        """
        if passes[0].ids is None:
            self._hashed = "embeddings"
            ids = codes(_joined([each.embeddings for each in passes]))
        else:
            ids = _joined([each.ids for each in passes])
        mixed = (ids + 1) * 0x9E3779B97F4A7C1 + position * 0x2545F4914F6CDD1 + sequence[:, None] * 0x5851F42D4C957F2
        mixed = (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B
        total = torch.where(real, mixed ^ (mixed >> 32), 0).sum()
        self.fingerprint = added(self.fingerprint, total)


def _padding_of_generate(sequences: CachedSequences, ids: torch.Tensor, by: RowEnds) -> torch.Tensor:
    """Return bool [batch, position]: padding that `generate` appends to rows that end before the others.

    A row is over from an end token on for as long as padding follows: until the first token that is neither.
    """
    ends = torch.zeros_like(ids, dtype=torch.bool)
    for token in by.tokens:  # a tensor of them would be copied from the host
        ends = ends | (ids == token)
    steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    ended = torch.where(ends, steps, 0).cummax(dim=1).values
    began = torch.where(ends | (ids == by.pad), -1, steps).cummax(dim=1).values
    over = torch.where(ended > 0, ended > began, sequences.ended[:, None] & (began < 0))
    before = torch.cat([sequences.ended[:, None], over[:, :-1]], dim=1)
    sequences.ended = over[:, -1]
    return before & (ids == by.pad)


def cache_among(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cache | None:
    """Return the cache with the state of a forward pass: the one it returned, else the one in its arguments."""
    values = out.values() if isinstance(out, dict) else out
    return first_cache((*values, *args, *kwargs.values()))


def _joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return torch.cat([tensor for tensor in tensors if tensor is not None], dim=1)


def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(forward).parameters if name != "self")


_names_of_class = lru_cache(maxsize=32)(_argument_names)
