"""Write tensors with random weights as safetensors shards, without holding one in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from qwenlab.checkpoint.anatomy.tensors import Tensor
from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.random_weights.block import LEVELS, RandomBlock
from qwenlab.checkpoint.random_weights.distributions import distribution

_BYTES = 2  # of a weight in bfloat16
_AT = (np.arange(LEVELS) + 0.5) / LEVELS


@dataclass(frozen=True)
class RandomShard:
    """A shard to be written: some tensors in bfloat16, in the order of the stack."""

    name: str
    tensors: Sequence[Tensor]

    @property
    def header(self) -> bytes:
        """What precedes the data: 8 bytes with the length of a JSON object, and the object, padded to 8 bytes.

        Source: description of the format in huggingface/safetensors.
        """
        fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in self.tensors:
            start, end = end, end + _BYTES * tensor.size
            fields[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + data_bytes(self.tensors)

    def write(self, folder: Path, config: TextConfig, block: RandomBlock, progress: tqdm) -> None:
        """Write the file, with the weights that the block has under the tensors' names."""
        with (folder / self.name).open("xb") as file:
            file.write(self.header)
            for tensor in self.tensors:
                for values in _values(tensor, config, block):
                    file.write(values.data)
                    progress.update(values.nbytes)


def data_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors in bfloat16."""
    return _BYTES * sum(tensor.size for tensor in tensors)


def shard_files(tensors: Iterable[Tensor], limit: int = 5 * 10**9) -> list[RandomShard]:
    """Divide tensors into shards of up to `limit` bytes, in order; a larger tensor has a shard of its own."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and data_bytes([*shards[-1], tensor]) > limit:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    return [
        RandomShard(f"model-{number:05d}-of-{count:05d}.safetensors", part)
        for number, part in enumerate(shards, start=1)
    ]


def write_index(shards: Iterable[RandomShard], folder: Path) -> None:
    """Write model.safetensors.index.json, which says which shard has a tensor."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    size = sum(data_bytes(shard.tensors) for shard in shards)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _values(tensor: Tensor, config: TextConfig, block: RandomBlock) -> Iterator[np.ndarray]:
    """Yield the weights of a tensor in pieces, as the 16 bits of each bfloat16."""
    drawn = distribution(tensor, config)
    quantiles = drawn.quantile(_AT)
    if drawn.gain is None:
        table = _bfloat16(quantiles)  # the number format's rounding is done here, 65,536 times for a tensor of any size
        for levels in block.read(tensor.name, tensor.size):
            yield table.take(levels)
        return
    rows, columns = tensor.shape
    gains = drawn.gain(_AT[np.concatenate(list(block.read(f"{tensor.name} gain", rows)))])
    for row, gain in enumerate(gains):
        for levels in block.read(f"{tensor.name} {row}", columns):
            yield _bfloat16(gain * quantiles.take(levels))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().astype("<i2", copy=False)
