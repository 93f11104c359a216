"""The tokens that were read into the columns of a cache, so that those that a crop removes can be counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

Rows = torch.Tensor | int
"""1 + index of each token's label, 0 for padding: int [batch, column], or one integer where all tokens are alike."""


@dataclass(eq=False)
class ReadColumns:
    """The tokens that were read into the columns of one cache.

    batch  rows of the cache
    end    columns of the cache after the newest pass, whose tokens may be added later
    parts  first column, end and rows of consecutive columns
    """

    batch: int
    end: int = 0
    parts: list[tuple[int, int, Rows]] = field(default_factory=list)

    def add(self, start: int, width: int, rows: Rows) -> None:
        """Add the tokens of new columns."""
        first, end, last = self.parts[-1] if self.parts else (0, -1, None)
        if isinstance(rows, int) and isinstance(last, int) and (end, last) == (start, rows):
            self.parts[-1] = first, start + width, rows
        else:
            self.parts.append((start, start + width, rows))

    def after(self, columns: int) -> list[tuple[int, int, Rows]]:
        """Return the parts from this column on."""
        return [
            (max(start, columns), end, rows if isinstance(rows, int) else rows[:, max(columns - start, 0) :])
            for start, end, rows in self.parts
            if end > columns
        ]

    def crop(self, columns: int) -> None:
        """Remove all columns but the first ones."""
        self.parts = [
            (start, min(end, columns), rows if isinstance(rows, int) else rows[:, : columns - start])
            for start, end, rows in self.parts
            if start < columns
        ]


class CroppedTokens:
    """Counts, by label, the tokens that were read and later cropped from their cache; no value is read on the host."""

    def __init__(self) -> None:
        self._whole = Counter[int]()  # by row: of parts whose tokens are all alike
        self._mixed: torch.Tensor | None = None  # int [row]

    def crop(self, read: ReadColumns, columns: int, labels: int) -> None:
        """Count the tokens from this column on, and remove them."""
        for start, end, rows in read.after(columns):
            if isinstance(rows, int):
                self._whole[rows] += read.batch * (end - start)
            else:
                counts = torch.zeros(1 + labels, dtype=torch.int64, device=rows.device)
                if self._mixed is not None:
                    counts[: len(self._mixed)] = self._mixed
                self._mixed = counts.index_add_(0, rows.flatten(), torch.ones_like(rows.flatten()))
        read.crop(columns)

    def with_tails(self, tails: dict[ReadColumns, int]) -> Counter[int]:
        """Return the counts by row, with those of caches that were cropped to these columns and not read since."""
        counts = self._whole + Counter(dict(enumerate([] if self._mixed is None else self._mixed.tolist())))
        for read, columns in tails.items():
            for start, end, rows in read.after(columns):
                if isinstance(rows, int):
                    counts[rows] += read.batch * (end - start)
                else:
                    counts.update(rows.flatten().tolist())
        return counts
