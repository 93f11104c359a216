"""Hash the weights of a checkpoint, so that a recording identifies the exact weights it was measured on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import torch
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
    named = sorted(module.named_parameters())
    samples = _samples([parameter for _, parameter in named])
    for (name, parameter), sample in zip(named, samples, strict=True):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample)
    return f"sampled-sha256:{digest.hexdigest()}"


@torch.no_grad()
def _samples(parameters: list[nn.Parameter]) -> list[bytes]:
    """Some values of each parameter, in float32, or its place in the files if it is not in memory.

    The values are read at once from each device, which is faster than one by one.
    """
    samples = [(where_stored(parameter) or "").encode() for parameter in parameters]
    alike: defaultdict[tuple[torch.device, torch.dtype], dict[int, torch.Tensor]] = defaultdict(dict)
    for place, parameter in enumerate(parameters):
        if not parameter.is_meta and not samples[place]:  # an offloaded weight has no values until its layer runs
            alike[parameter.device, parameter.dtype][place] = _spaced(parameter)
    for by_place in alike.values():
        values = torch.cat(list(by_place.values())).float().cpu().numpy()
        end = 0
        for place, sampled in by_place.items():
            begin, end = end, end + len(sampled)
            samples[place] = values[begin:end].tobytes()
    return samples


def _spaced(parameter: nn.Parameter) -> torch.Tensor:
    """Up to VALUES evenly spaced values."""
    count = parameter.numel()
    step = max(1, count // VALUES)
    if type(parameter.data) is torch.Tensor and parameter.is_contiguous():
        return parameter.as_strided((min(VALUES, -(-count // step)),), (step,))
    return parameter.flatten()[::step][:VALUES]


def _sample(shard: Path, tensors: list[StoredTensor], digest: hashlib._Hash) -> None:
    """Add the header of a shard and the middle of each of its tensors, in the order of the file."""
    tensors.sort(key=lambda stored: stored.start)
    with shard.open("rb") as content:
        digest.update(content.read(tensors[0].start))
        for stored in tensors:
            length = min(SAMPLE, stored.end - stored.start)
            content.seek(stored.start + (stored.end - stored.start - length) // 2)
            digest.update(content.read(length))
