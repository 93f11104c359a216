"""Reading files that are not in memory: drop them from the page cache, count the bytes read, measure the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
BLOCK = 2**23


def drop(files: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next reader reads them from the disk.

    Raises OSError if over 1 % of a file stays: a process has it mapped, or its file system is in memory.
    """
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # pages that are not yet written are not dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
        if (kept := cached_bytes(path)) > 0.01 * path.stat().st_size:
            raise OSError(
                f"{path}: {kept:,} bytes stay in memory; close what maps it, or choose a --scratch on a disk."
            )


def cached_bytes(path: Path) -> int:
    """Bytes of a file that are in the page cache, by mincore(2)."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        pages = np.zeros(-(-size // PAGE), np.uint8)
        start = ctypes.c_char.from_buffer(mapped)
        where, to = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_void_p(pages.ctypes.data)
        failed = ctypes.CDLL(None, use_errno=True).mincore(where, ctypes.c_size_t(size), to)
        del start  # a mapping with a view cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return PAGE * int((pages & 1).sum())


def bytes_from_disk() -> int:
    """Bytes that the threads of this process have caused to be read from disks."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def sequential_speed(files: Iterable[Path], most: int = 2**32) -> float:
    """Bytes per second of reading up to `most` bytes of cold files one after the other; they are cold afterwards."""
    paths = list(files)
    drop(paths)
    buffer, read = bytearray(BLOCK), 0
    began = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while read < most and (count := file.readinto(buffer)):
                read += count
    seconds = time.perf_counter() - began
    drop(paths)
    return read / seconds
