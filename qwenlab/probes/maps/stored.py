"""Maps that are kept, text by text: chosen rows as they are, or means over blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from qwenlab.errors import MapTooLarge
from qwenlab.probes.base import Variable

FULL = 2048
"""Tokens, at most, of a text whose full map is kept; and blocks of a map of block means."""

HELD = 2**31
"""Bytes of maps, at most, that a probe keeps."""


class StoredRows(NamedTuple):
    """Rows of some heads of one layer, that are to be kept.

    place, heads     which layer, and which of the heads that are kept
    numbers          [batch] of the sequences, in reading order
    position, real   [batch, row]: of the rows, and whether they are to be kept
    weight           [batch, head, row, column];  key_position  int [batch, column], -1 for padding
    openness         [batch, row, head], mean gate value, where it is known
    """

    place: int
    heads: slice
    numbers: Sequence[int]
    position: torch.Tensor
    real: torch.Tensor
    weight: torch.Tensor
    key_position: torch.Tensor
    openness: torch.Tensor | None


class MapStore(ABC):
    """Keeps weights of some layers, on the host."""

    nbytes: int

    @abstractmethod
    def add(self, rows: StoredRows) -> None:
        """Keep rows of some heads of one layer."""

    @abstractmethod
    def variables(self, heads: int) -> dict[str, Variable]:
        """What was kept, as variables of a recording."""


class WholeMaps(MapStore):
    """Rows as they are: `weight` [layer, head, row, key], NaN beyond the row's own token."""

    def __init__(self, layers: int) -> None:
        self._rows: list[list[tuple[int, slice, np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(layers)]
        self.nbytes = 0

    def add(self, rows: StoredRows) -> None:
        """Keep the real rows of each sequence, over its real tokens."""
        for row, number in enumerate(rows.numbers):
            wanted, keys = rows.real[row].cpu(), (rows.key_position[row] >= 0).cpu()
            held = rows.weight[row].cpu()[:, wanted][:, :, keys].numpy()
            where, opened = rows.position[row].cpu()[wanted].numpy(), rows.openness
            gate = np.zeros((len(where), len(held))) if opened is None else opened[row].cpu()[wanted].numpy()
            self._rows[rows.place].append((number, rows.heads, where, held, gate))
            self.nbytes += held.nbytes

    def variables(self, heads: int) -> dict[str, Variable]:
        """Weights, mean value of the output gate, and which token of which text each row is."""
        first = [(number, where) for number, which, where, *_ in self._rows[0] if which.start == 0]
        text = np.array([number for number, where in first for _ in where], np.int64)
        position = np.array([each for _, where in first for each in where], np.int64)
        longest = 1 + int(position.max(initial=-1))
        weight = np.full((len(self._rows), heads, len(text), longest), np.nan, np.float32)
        openness = np.zeros((len(self._rows), heads, len(text)), np.float32)
        for place, kept in enumerate(self._rows):
            starts = [0] * heads  # rows filled so far, by head
            for _, which, where, held, gate in kept:
                start, keys = starts[which.start], min(held.shape[2], longest)
                here = slice(start, start + len(where))
                weight[place, which, here, :keys] = held[..., :keys]
                openness[place, which, here] = gate.T
                starts[which] = [start + len(where)] * (which.stop - which.start)
        order = np.lexsort((position, text))
        text, position, weight, openness = text[order], position[order], weight[:, :, order], openness[:, :, order]
        weight[:, :, np.arange(longest) > position[:, None]] = np.nan
        by_row = ("layer", "head", "row")
        return {
            "weight": ((*by_row, "key"), weight, "1", "weight of a token's value in a row's output"),
            "mean_gate": (by_row, openness, "1", "mean value of the output gate"),
            "text": (("row",), text, "1", "text of the row"),
            "position": (("row",), position, "token", "position of the row's token"),
        }


class BlockMeans(MapStore):
    """Means over blocks of queries and keys: `weight` and `size` (of |weight|) [layer, head, row, key], by block."""

    def __init__(self, layers: int, heads: int, block: int) -> None:
        self._layers, self._heads, self._block = layers, heads, block
        self._sums: dict[int, np.ndarray] = {}  # by text: [layer, signed or not, head, block of queries, of keys]
        self._lengths: dict[int, int] = {}

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of the sums."""
        return sum(each.nbytes for each in self._sums.values())

    def add(self, rows: StoredRows) -> None:
        """Add the real rows of each sequence to its blocks."""
        for row, number in enumerate(rows.numbers):
            real = rows.real[row]
            held, where = rows.weight[row][:, real][:, :, rows.key_position[row] >= 0], rows.position[row][real]
            if not len(where):
                continue
            both = torch.stack([held, held.abs()])
            both = torch.nn.functional.pad(both, (0, -both.shape[3] % self._block))
            both = both.unflatten(3, (-1, self._block)).sum(dim=4)
            blocks = both.shape[3]
            summed = both.new_zeros(*both.shape[:2], blocks, blocks).index_add_(2, where // self._block, both)
            total = self._grown(number, blocks)
            total[rows.place, :, rows.heads, :blocks, :blocks] += summed.cpu().numpy()
            self._lengths[number] = max(self._lengths.get(number, 0), 1 + int(where.max()))

    def _grown(self, number: int, blocks: int) -> np.ndarray:
        """The sums of a text, with room for so many blocks."""
        held = self._sums.get(number, np.zeros((self._layers, 2, self._heads, 0, 0), np.float32))
        more = max(0, blocks - held.shape[3])
        self._sums[number] = np.pad(held, ((0, 0), (0, 0), (0, 0), (0, more), (0, more))) if more else held
        return self._sums[number]

    def variables(self, heads: int) -> dict[str, Variable]:
        """Means, and which block of which text each row is."""
        texts = sorted(self._lengths)
        sides = [-(-self._lengths[text] // self._block) for text in texts]
        longest, rows = max(sides, default=0), sum(sides)
        means = np.full((self._layers, 2, heads, rows, longest), np.nan, np.float32)
        for start, side, text in zip(np.cumsum([0, *sides]), sides, texts, strict=False):
            queries = np.minimum(self._block, self._lengths[text] - self._block * np.arange(side))[:, None]
            keys = np.arange(side)
            pairs = np.where(keys < keys[:, None], queries * self._block, queries * (queries + 1) / 2)
            pairs = np.where(keys > keys[:, None], np.nan, pairs)
            means[..., start : start + side, :side] = self._sums[text][..., :side, :side] / pairs
        number = np.repeat(texts, sides).astype(np.int64)
        place = self._block * np.concatenate([np.arange(0), *(np.arange(side) for side in sides)]).astype(np.int64)
        dims = ("layer", "head", "row", "key")
        return {
            "weight": (dims, means[:, 0], "1", "mean weight over a block"),
            "size": (dims, means[:, 1], "1", "mean |weight| over a block"),
            "text": (("row",), number, "1", "text of the row"),
            "position": (("row",), place, "token", "position of the block's first token"),
        }


def check_size(name: str, length: int, full: bool, block: int | None, pictures: MapStore) -> None:
    """Refuse a map that is too large to be kept whole. Raises MapTooLarge.

    name    of the probe;  length  tokens of the text so far, padding included
    full    whether all rows are kept;  block  the side of a block, where means are
    """
    mend = (
        f"Reduce it: keep chosen rows with queries=[...], or means over blocks with "
        f"block={2 ** max(1, (length // 512).bit_length())}; statistics and mass by distance need neither."
    )
    if full and length > FULL:
        raise MapTooLarge(
            f"{name}(queries='all') keeps every row, of texts up to {FULL:,} tokens; this one has {length:,}.\n{mend}"
        )
    if block and length > FULL * block:
        raise MapTooLarge(
            f"{name}(block={block}) keeps up to {FULL:,} blocks a text; "
            f"this one of {length:,} tokens has {-(-length // block):,}.\n{mend}"
        )
    if pictures.nbytes > HELD:
        raise MapTooLarge(
            f"{name} keeps {pictures.nbytes / 2**30:.1f} GiB of maps by now, of {HELD / 2**30:.0f} at most.\n"
            f"Read fewer texts, layers=[...] or heads=[...]. {mend}"
        )
