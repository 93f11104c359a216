"""A block of random 16-bit levels from which the weights of a whole checkpoint are read."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np

LEVELS = 2**16
"""Number of levels: a weight is the quantile of its distribution at (level + 1/2) / LEVELS."""

_LENGTH = 33_554_393
"""The largest prime below 2 ** 25, so that a matrix repeats no row: its length divides no multiple of the row's."""

_PIECE = 2**20


class RandomBlock:
    """A fixed sequence of 33,554,393 uniform levels (64 MiB), the same for a seed on every machine.

    Levels are the raw output of PCG64, which numpy keeps stable, and not a library's normal values, which may differ
    between processors in their last bit.
    """

    def __init__(self, seed: int) -> None:
        raw = np.random.PCG64(seed).random_raw(-(-_LENGTH * 2 // 8))
        self._levels = raw.astype("<u8", copy=False).view("<u2")[:_LENGTH]

    def read(self, name: str, count: int, piece: int = _PIECE) -> Iterator[np.ndarray]:
        """Yield `count` levels in arrays of up to `piece`, as of a place that depends on the name alone.

        At its end, the block continues with its beginning. So a tensor does not depend on the tensors before it: a
        checkpoint with fewer layers has the same weights in those that it has.
        """
        start = int.from_bytes(sha256(name.encode()).digest()[:8], "little") % _LENGTH
        while count:
            levels = self._levels[start : start + min(piece, count)]
            yield levels
            count, start = count - len(levels), (start + len(levels)) % _LENGTH
