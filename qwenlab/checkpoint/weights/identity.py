"""The hash of a checkpoint that is not open."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qwenlab.checkpoint.source import locate
from qwenlab.checkpoint.weights.fingerprint import fingerprint
from qwenlab.checkpoint.weights.shards import read_weights


def hash_of(source: str | Path, revision: str | None = None) -> str:
    """What `Checkpoint.facts.hash` will be: of config.json and the weights in the files. Raises what `open` does."""
    weights = read_weights(locate(source, revision).folder)
    files = (weights.folder / "config.json", *weights.shards)
    return _hash(weights.folder, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _hash(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Read once for as long as the files stay as they are."""
    return fingerprint(read_weights(folder))
