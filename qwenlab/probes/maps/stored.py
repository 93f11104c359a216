"""Store maps text by text: chosen rows as they are, or means over blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from qwenlab.errors import MapTooLarge
from qwenlab.probes.base import Variable

MAX_LENGTH = 2048
"""Largest length of a text whose full map is stored, in tokens; largest number of blocks in a map of block means."""

MAX_BYTES = 2**31
"""Largest size of the maps that a probe stores, in bytes."""


class StoredRows(NamedTuple):
    """Rows of some heads of one layer, to be stored."""

    place: int  # index of the layer among those that are stored
    heads: slice  # indices of the heads among those that are stored
    numbers: Sequence[int]  # [batch]: number of each sequence in reading order
    position: torch.Tensor  # [batch, row]
    real: torch.Tensor  # [batch, row]: whether to store it
    weight: torch.Tensor  # [batch, head, row, column]
    key_position: torch.Tensor  # int [batch, column], -1 for padding
    openness: torch.Tensor | None  # [batch, row, head], mean gate value, or None if not known


class WholeMaps:
    """Rows as they are: `weight` [layer, head, row, key], NaN beyond the row's own token."""

    def __init__(self, layers: int) -> None:
        self._rows: list[list[tuple[int, slice, np.ndarray, np.ndarray, np.ndarray | None]]]
        self._rows = [[] for _ in range(layers)]
        self.nbytes = 0

    def add(self, rows: StoredRows) -> None:
        """Store the real rows of each sequence, over its real tokens."""
        for row, number in enumerate(rows.numbers):
            real, keys = rows.real[row].cpu(), (rows.key_position[row] >= 0).cpu()
            weight = rows.weight[row].cpu()[:, real][:, :, keys].numpy()
            where, openness = rows.position[row].cpu()[real].numpy(), rows.openness
            gate = None if openness is None else openness[row].cpu()[real].numpy()
            self._rows[rows.place].append((number, rows.heads, where, weight, gate))
            self.nbytes += weight.nbytes

    def variables(self, heads: int) -> dict[str, Variable]:
        """Return weights and mean value of the output gate, with the text and position of each row."""
        first = [(number, where) for number, which, where, *_ in self._rows[0] if which.start == 0]
        text = np.array([number for number, where in first for _ in where], np.int64)
        position = np.array([each for _, where in first for each in where], np.int64)
        longest = 1 + int(position.max(initial=-1))
        weight = np.full((len(self._rows), heads, len(text), longest), np.nan, np.float32)
        openness = np.zeros((len(self._rows), heads, len(text)), np.float32)
        for place, stored in enumerate(self._rows):
            starts = [0] * heads  # rows filled so far, by head
            for _, which, where, rows, gate in stored:
                start, keys = starts[which.start], min(rows.shape[2], longest)
                here = slice(start, start + len(where))
                weight[place, which, here, :keys] = rows[..., :keys]
                if gate is not None:
                    openness[place, which, here] = gate.T
                starts[which] = [start + len(where)] * (which.stop - which.start)
        order = np.lexsort((position, text))
        text, position, weight, openness = text[order], position[order], weight[:, :, order], openness[:, :, order]
        weight[:, :, np.arange(longest) > position[:, None]] = np.nan
        by_row = ("layer", "head", "row")
        gates = {"mean_gate": (by_row, openness, "1", "mean value of the output gate")}
        if any(gate is None for stored in self._rows for *_, gate in stored):  # these layers have none
            gates = {}
        return {
            "weight": ((*by_row, "key"), weight, "1", "weight of a token's value in a row's output"),
            **gates,
            "text": (("row",), text, "1", "text of the row"),
            "position": (("row",), position, "token", "position of the row's token"),
        }


class BlockMeans:
    """Means over blocks of queries and keys: `weight` and `size` (of |weight|) [layer, head, row, key], by block."""

    def __init__(self, layers: int, heads: int, block: int) -> None:
        self._layers, self._heads, self._block = layers, heads, block
        self._sums: dict[int, np.ndarray] = {}  # by text: [layer, signed or not, head, block of queries, of keys]
        self._lengths: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(each.nbytes for each in self._sums.values())

    def add(self, rows: StoredRows) -> None:
        """Add the real rows of each sequence to its blocks."""
        for row, number in enumerate(rows.numbers):
            real = rows.real[row]
            weight, where = rows.weight[row][:, real][:, :, rows.key_position[row] >= 0], rows.position[row][real]
            if not len(where):
                continue
            both = torch.stack([weight, weight.abs()])
            both = torch.nn.functional.pad(both, (0, -both.shape[3] % self._block))
            both = both.unflatten(3, (-1, self._block)).sum(dim=4)
            blocks = both.shape[3]
            summed = both.new_zeros(*both.shape[:2], blocks, blocks).index_add_(2, where // self._block, both)
            sums = self._sums.get(number, np.zeros((self._layers, 2, self._heads, 0, 0), np.float32))
            more = max(0, blocks - sums.shape[3])
            self._sums[number] = np.pad(sums, ((0, 0), (0, 0), (0, 0), (0, more), (0, more))) if more else sums
            self._sums[number][rows.place, :, rows.heads, :blocks, :blocks] += summed.cpu().numpy()
            self._lengths[number] = max(self._lengths.get(number, 0), 1 + int(where.max()))

    def variables(self, heads: int) -> dict[str, Variable]:
        """Return the means, with the text and the first position of the block of each row."""
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


MapStore = WholeMaps | BlockMeans


def check_size(name: str, length: int, full: bool, block: int | None, store: MapStore) -> None:
    """Raise MapTooLarge for a map that is too large to store.

    length  tokens of the text so far, padding included
    full    whether all rows are stored
    """
    fix = (
        f"Store chosen rows with queries=[...], or means over blocks with "
        f"block={2 ** max(1, (length // 512).bit_length())}; statistics and mass by distance need neither."
    )
    if full and length > MAX_LENGTH:
        raise MapTooLarge(
            f"{name}(queries='all') stores every row of texts up to {MAX_LENGTH:,} tokens; this text has "
            f"{length:,}.\n{fix}"
        )
    if block and length > MAX_LENGTH * block:
        raise MapTooLarge(
            f"{name}(block={block}) stores up to {MAX_LENGTH:,} blocks per text; "
            f"this text of {length:,} tokens has {-(-length // block):,}.\n{fix}"
        )
    if store.nbytes > MAX_BYTES:
        raise MapTooLarge(
            f"{name} has stored {store.nbytes / 2**30:.1f} GiB of maps; the limit is {MAX_BYTES / 2**30:.0f} GiB.\n"
            f"Read fewer texts, layers=[...] or heads=[...]. {fix}"
        )
