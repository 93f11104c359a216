"""Hash the weights of a checkpoint, so that a recording identifies the exact weights it was measured on."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from torch import nn

from qwenlab.checkpoint.source import locate
from qwenlab.checkpoint.weights.in_files import where_stored
from qwenlab.checkpoint.weights.shards import SMALL, StoredTensor, Weights, read_weights

SAMPLE = 4096
"""Bytes read from the middle of each tensor of a large checkpoint."""

VALUES = 64
"""Values per parameter in the hash of a model in memory."""


def fingerprint(weights: Weights) -> str:
    """Hash config.json and the weights: "sha256:..." of every byte, or "sampled-sha256:..." of a sample.

    Up to 1 GiB of shards, every byte is hashed. Above, the hash covers the name, size and header of each shard and the
    middle 4 KiB of each tensor: any training step changes it, one changed value elsewhere does not.
    """
    whole = weights.size <= SMALL
    digest = hashlib.sha256()
    for file in (weights.folder / "config.json", *weights.shards):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        if whole or file.suffix == ".json":
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            _sample(file, [stored for stored in weights.tensors.values() if stored.shard == file], digest)
    return f"{'' if whole else 'sampled-'}sha256:{digest.hexdigest()}"


def hash_of(source: str | Path, revision: str | None = None) -> str:
    """Return the `facts.hash` that the checkpoint will have when it is open; raises the same errors as `open`."""
    weights = read_weights(locate(source, revision).folder)
    files = (weights.folder / "config.json", *weights.shards)
    return _hash(weights.folder, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _hash(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Cached by the name, size and modification time of the files."""
    return fingerprint(read_weights(folder))


def fingerprint_in_memory(module: nn.Module) -> str:
    """Hash the name, shape and dtype of every parameter, and up to 64 evenly spaced values of it.

    It distinguishes models without reading all weights: any training step changes it, but a change of single weights
    may not, hence the prefix "sampled-". Values of offloaded weights are left out; those of streamed weights are not
    read: the hash covers their place in the files instead.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten() if where_stored(parameter) is None else parameter.detach()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if where := where_stored(parameter):  # unchanged since it was opened, and not in memory
            digest.update(where.encode())
        elif not flat.is_meta:  # an offloaded weight has no values until its layer runs
            digest.update(flat[:: max(1, len(flat) // VALUES)][:VALUES].float().cpu().numpy().tobytes())
    return f"sampled-sha256:{digest.hexdigest()}"


def _sample(shard: Path, tensors: list[StoredTensor], digest: hashlib._Hash) -> None:
    """Add the header of a shard and the middle of each of its tensors, in the order of the file."""
    tensors.sort(key=lambda stored: stored.start)
    with shard.open("rb") as content:
        digest.update(content.read(tensors[0].start))
        for stored in tensors:
            length = min(SAMPLE, stored.end - stored.start)
            content.seek(stored.start + (stored.end - stored.start - length) // 2)
            digest.update(content.read(length))
