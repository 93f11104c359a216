"""Measure how fast a disk reads weight files in order."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenlab.checkpoint.streaming.shard_file import BLOCK

SAMPLE = 2**28
"""Bytes that are read to measure a disk, where the files have as many."""


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """A measured speed of sequential reading.

    bytes_per_second  measured over `read` bytes
    how               how the page cache was kept out of the measurement
    """

    bytes_per_second: float
    read: int
    how: str


def disk_speed(files: Sequence[Path], sample: int = SAMPLE) -> DiskSpeed:
    """Read up to `sample` bytes from the start of the largest file, in blocks of 4 MiB, past the page cache."""
    path = max(files, key=lambda file: file.stat().st_size)
    direct = getattr(os, "O_DIRECT", 0)
    try:
        file, how = os.open(path, os.O_RDONLY | direct), "O_DIRECT"
    except OSError:  # a filesystem without direct reads
        file, how = os.open(path, os.O_RDONLY), "after posix_fadvise(DONTNEED)"
    buffer = mmap.mmap(-1, BLOCK)  # aligned to a page, as direct reads require
    try:
        if how != "O_DIRECT":
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        read, began = 0, time.perf_counter()
        while read < sample and (got := os.preadv(file, [buffer], read)):
            read += got
            if got % mmap.PAGESIZE:  # the end of the file
                break
        seconds = time.perf_counter() - began
    finally:
        os.close(file)
    return DiskSpeed(read / seconds, read, how)
