"""Follow the caches of a model between its passes: columns that are cropped, and rows that change places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from qwenlab.capture.forward_pass import CachedSequences
from qwenlab.capture.read_columns import CroppedTokens, ReadColumns
from qwenlab.capture.wrapping import listening
from qwenlab.errors import AmbiguousSequences


class TrackedCaches:
    """The caches whose sequences are tracked, held weakly.

    Of a cache only its measuring layer is followed: the attention layer that gives its length.
    """

    def __init__(self) -> None:
        self.cropped = CroppedTokens()
        self._sequences: WeakKeyDictionary[Cache, CachedSequences] = WeakKeyDictionary()
        self._caches: WeakKeyDictionary[Any, ReferenceType[Cache]] = WeakKeyDictionary()  # by their measuring layer
        self._tails: dict[ReadColumns, int] = {}  # columns left of each cache that was cropped, and not read since
        self._columns = range(0)  # those that some cache of this block has got here
        self._may_be_copied = False

    def known(self, cache: Cache | None, past: int, batch: int) -> CachedSequences | None:
        """Return the sequences of this cache; None if it was empty, begun elsewhere, or has another number of rows.

        Raises AmbiguousSequences if its rows have changed places.
        """
        if cache is None or not past:
            return None
        known = self._sequences.get(cache)
        if known is None or len(known.sequence) != batch:
            self._may_be_copied |= known is not None or self._columns.start < past <= self._columns.stop
            return None
        self._check_rows(cache, known)
        self._tails.pop(known.read, None)
        return known

    def remember(self, cache: Cache, sequences: CachedSequences) -> None:
        """Remember the sequences of the pass that has ended by the cache of its state."""
        layer = _measuring_layer(cache)
        if self._sequences.get(cache) is not sequences:
            self._sequences[cache] = sequences
            self._caches[layer] = ref(cache)
            begin = self._columns.start if self._columns else sequences.begin
            self._columns = range(min(begin, sequences.begin), self._columns.stop)
        self._columns = range(self._columns.start, max(self._columns.stop, sequences.read.end))
        if len(sequences.sequence) > 1:
            sequences.keys = getattr(layer, "keys", None)

    def cropped_tokens(self, labels: Sequence[str]) -> dict[str, int] | None:
        """Return the number of tokens by label that were read and later cropped; None if that cannot be known.

        It cannot where a pass goes on from a cache that may be a copy of one of this block, or a selection of its rows.
        """
        self._note_lengths()
        if self._may_be_copied:
            return None
        counts = self.cropped.with_tails(self._tails)
        return {label: counts[1 + index] for index, label in enumerate(labels)}

    def listen(self, hooks: ExitStack) -> None:
        """Follow the methods of caches until `hooks` closes; what happens to a cache after that is not of this block.

        Raise AmbiguousSequences where the rows of a tracked cache change places.
        """
        hooks.callback(self._end)
        hooks.enter_context(listening(DynamicLayer, "crop", self._on_crop))
        hooks.enter_context(listening(CacheLayerMixin, "reorder_cache", self._on_rows))
        hooks.enter_context(listening(DynamicLayer, "batch_select_indices", self._on_rows))
        hooks.enter_context(listening(DynamicLayer, "batch_repeat_interleave", self._on_repeat))

    def _on_crop(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (known := self._of(args[0])) is not None:
            self._note(known, int(args[0].get_seq_length()))

    def _on_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if (known := self._of(args[0])) is None:
            return
        places, order = torch.arange(len(known.sequence)), (*args[1:], *kwargs.values())[0]
        chosen = places[order.cpu() if isinstance(order, torch.Tensor) else order]
        if torch.equal(chosen, places):
            known.keys = args[0].keys
        elif len(chosen) == len(places):
            raise _moved()
        else:
            self._forget(args[0])

    def _on_repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._of(args[0]) is not None and (*args[1:], *kwargs.values())[0] != 1:
            self._forget(args[0])

    def _of(self, layer: Any) -> CachedSequences | None:
        """Return the sequences of the cache that this layer measures."""
        reference = self._caches.get(layer)
        cache = None if reference is None else reference()
        return None if cache is None else self._sequences.get(cache)

    def _forget(self, layer: Any) -> None:
        """Forget the sequences of a cache with another number of rows: it has new ones."""
        cache = self._caches.pop(layer)()
        if cache is not None:
            self._sequences.pop(cache, None)

    def _note(self, known: CachedSequences, columns: int) -> None:
        if columns < known.read.end:
            self._tails[known.read] = columns

    def _note_lengths(self) -> None:
        """Note the caches that are shorter than their newest pass left them; one that is empty was reset."""
        for cache, known in list(self._sequences.items()):
            if columns := int(cache.get_seq_length()):
                self._note(known, columns)

    def _end(self) -> None:
        self._note_lengths()
        self._sequences.clear()

    def _check_rows(self, cache: Cache, known: CachedSequences) -> None:
        """Raise AmbiguousSequences if the keys were replaced by those of other rows, by hand."""
        before, known.keys = known.keys, None
        now = getattr(_measuring_layer(cache), "keys", None)
        if before is None or now is None or now is before or now.data_ptr() == before.data_ptr():
            return  # the same keys, or a slice of their first columns
        if (width := min(before.shape[-2], now.shape[-2])) and len(now) == len(before):
            old, new = (keys[..., :width, :].cpu() for keys in (before, now))
            same = [[torch.equal(row, other) for other in old] for row in new]
            if any(any(row) and not row[number] for number, row in enumerate(same)):
                raise _moved()


def _measuring_layer(cache: Cache) -> Any:
    """Return the layer that gives a cache its length: the first attention layer."""
    return next(layer for layer in cache.layers if isinstance(layer, CacheLayerMixin))


def _moved() -> AmbiguousSequences:
    return AmbiguousSequences(
        "The rows of the cache were reordered, as beam search does: which sequence a row continues is no longer "
        "known.\nGenerate with num_beams=1, or generate outside the block and read the finished texts inside it."
    )
