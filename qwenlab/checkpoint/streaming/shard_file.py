"""A mapped weight file: read ahead, bring pages into memory, drop them, and notice that the file changed."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EFAULT
from pathlib import Path

import torch

from qwenlab.errors import CannotStream, WeightsChanged

BLOCK = 2**22
"""Bytes per read: large enough for the full speed of a disk."""

FAULT_AROUND = 2**21
"""Bytes around a page that Linux may map with it: since 6.18 a whole folio of the page cache, of up to 2 MiB."""

_POPULATE_READ = 22  # Linux 5.14; `mmap` has no name for it before Python 3.14


class ShardFile:
    """A weight file, open and mapped into memory.

    The mapping is private: a change of the tensors in it never reaches the file.
    """

    def __init__(self, path: Path) -> None:
        if not hasattr(os, "posix_fadvise") or not hasattr(mmap, "MADV_DONTNEED"):
            raise CannotStream(
                "memory=... needs posix_fadvise and madvise, which this system lacks.\nUse Linux, or leave memory out."
            )
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._as_opened = _identity(os.fstat(self._file))
        self.map = mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)

    def require_unchanged(self) -> None:
        """Raise WeightsChanged if the path now leads to another file, or the file's size or time changed.

        A mapped page beyond the end of a truncated file would stop the process, so this is called before each layer.
        """
        try:
            now = _identity(os.stat(self.path))
        except OSError as error:
            raise self._changed(f"cannot be read any more ({error.strerror})") from error
        if now != self._as_opened:
            was, size = self._as_opened[2], now[2]
            raise self._changed(f"has {size:,} bytes instead of {was:,}" if was != size else "was replaced or written")

    def blocks(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes in [start, end), `BLOCK` at a time; a yielded block is valid until the next one."""
        scratch = memoryview(bytearray(min(BLOCK, end - start)))
        while start < end:
            block = scratch[: end - start]
            got = os.preadv(self._file, [block], start)
            if got == 0:
                raise self._changed("ends before its last tensor")
            # A short read is legal; whole elements are needed, so the rest of the block is read too.
            while got < len(block):
                more = os.preadv(self._file, [block[got:]], start + got)
                if more == 0:
                    raise self._changed("ends before its last tensor")
                got += more
            yield block
            start += got

    def populate(self, start: int, end: int) -> None:
        """Map the pages of a range that was read ahead, so that computing with it takes no page faults."""
        first, length = _pages(start, end)
        try:
            self.map.madvise(_POPULATE_READ, first, min(length, len(self.map) - first))
        except OSError as error:
            if error.errno == EFAULT:  # otherwise an older kernel, which maps the pages one by one
                raise self._changed("lost pages while it was read") from error

    def drop(self, start: int, end: int) -> None:
        """Unmap the pages of a range and remove them from the page cache.

        Neighbours that the kernel mapped on the way are unmapped too; the next layer finds them in the page cache.
        """
        first, length = _pages(start, end)
        before, after = max(0, first - FAULT_AROUND), min(first + length + FAULT_AROUND, len(self.map))
        self.map.madvise(mmap.MADV_DONTNEED, before, after - before)
        os.posix_fadvise(self._file, first, length, os.POSIX_FADV_DONTNEED)

    def _changed(self, how: str) -> WeightsChanged:
        return WeightsChanged(
            f"{self.path} {how} since the checkpoint was opened, and its weights are read as the model runs.\n"
            "Restore the file and open the checkpoint again; results of this pass are not valid."
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one stored tensor, or of some of its rows."""

    shard: ShardFile
    dtype: torch.dtype  # in the file
    start: int
    end: int

    @property
    def pages(self) -> int:
        """Bytes of the pages that the piece touches."""
        return _pages(self.start, self.end)[1]


def _pages(start: int, end: int) -> tuple[int, int]:
    """First byte and length of the whole pages that contain a range."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    return first, -(-(end - first) // mmap.PAGESIZE) * mmap.PAGESIZE


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
