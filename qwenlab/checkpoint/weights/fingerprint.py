"""A short name for the exact weights that a number was measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from qwenlab.checkpoint.weights.shards import SMALL, StoredTensor, Weights

SAMPLE = 4096
"""Bytes read from the middle of each tensor of a large checkpoint."""

VALUES = 64
"""Values of each parameter that go into the hash of a model in memory."""


def fingerprint(weights: Weights) -> str:
    """A hash of config.json and the weights: "sha256:..." of every byte, or "sampled-sha256:..." of a sample.

    Up to 1 GiB of shards every byte is hashed. Beyond, each shard adds its name, size and header, and each tensor the
    4 KiB in its middle: any training step changes that, a single altered value elsewhere does not.
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


def fingerprint_in_memory(module: nn.Module) -> str:
    """A hash of every parameter's name, shape and dtype and of up to 64 of its values, evenly spaced.

    It tells models apart without reading all weights: any training step changes it, an edit of single weights may
    escape it, and the prefix says so. Values of weights that are offloaded are left out.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not flat.is_meta:  # an offloaded weight is away until its layer runs
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
