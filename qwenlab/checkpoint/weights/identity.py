"""Hash a checkpoint without opening it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qwenlab.checkpoint.source import locate
from qwenlab.checkpoint.weights.fingerprint import fingerprint
from qwenlab.checkpoint.weights.shards import read_weights


def hash_of(source: str | Path, revision: str | None = None) -> str:
    """Return the `facts.hash` that the checkpoint will have when it is open; raises the same errors as `open`."""
    weights = read_weights(locate(source, revision).folder)
    files = (weights.folder / "config.json", *weights.shards)
    return _hash(weights.folder, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _hash(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Cached by the name, size and modification time of the files."""
    return fingerprint(read_weights(folder))
