"""Divide a budget of memory between what is always present, one layer, the layer read ahead, and the lm_head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.streaming.file_tensor import FileTensor
from qwenlab.checkpoint.streaming.memory_size import size_text
from qwenlab.checkpoint.streaming.shard_file import BLOCK, FAULT_AROUND
from qwenlab.checkpoint.streaming.unit import Unit
from qwenlab.checkpoint.weights.mtp_weights import mtp_prefix
from qwenlab.checkpoint.weights.shards import Weights
from qwenlab.errors import MemoryTooSmall

SLICE = 4096
"""Rows of the smallest slice of the lm_head; larger slices have a multiple of it."""

READING = 2 * (BLOCK + 2 * FAULT_AROUND)
"""Bytes for two reads at a time: a block each, and the pages around a layer that the kernel maps with it."""


@dataclass(frozen=True)
class Budget:
    """Bytes for the weights of a model, and what they are for.

    memory  all of it
    always  of what is always present: vectors, convolution kernels, the MTP head and buffers for reading
    layers  the matrices of each layer, by name, in the order of the file
    head    the lm_head, or the embedding that it is tied to
    """

    memory: int
    always: int
    layers: Sequence[Mapping[str, FileTensor]]
    head: FileTensor

    @classmethod
    def of(
        cls, memory: int, weights: Weights, config: TextConfig, decoder: Decoder, placed: Mapping[str, FileTensor]
    ) -> Budget:
        """The budget of a model. Raises MemoryTooSmall, with the smallest budget that works."""
        vectors = sum(tensor.nbytes for tensor in placed.values() if not tensor.is_matrix)
        layers = [_matrices(placed, f"{decoder.layer_path(layer)}.") for layer in range(len(decoder.layers))]
        head = placed.get(f"{config.family.head}.weight") or placed[f"{config.family.text_prefix}embed_tokens.weight"]
        mtp, while_loading = _mtp_bytes(weights, config, head)
        budget = cls(memory, vectors + mtp + min(READING, weights.size), layers, head)
        parts = {f"layer {i}": sum(t.nbytes for t in tensors.values()) for i, tensors in enumerate(layers)}
        parts["a slice of the lm_head"] = head.rows(0, min(SLICE, head.shape[0])).nbytes
        parts["joining the tensors of the MTP head"] = while_loading - mtp
        largest = max(parts, key=parts.__getitem__)
        if memory < (smallest := budget.always + parts[largest]):
            raise MemoryTooSmall(
                f"memory={size_text(memory)} is too small for {weights.folder}: {largest} takes "
                f"{size_text(parts[largest])}, and {size_text(budget.always)} are always present.\nGive {smallest:,} "
                f"bytes ({size_text(smallest)}) or more; where two layers fit, one is read while the other runs."
            )
        return budget

    def head_slices(self) -> list[Unit]:
        """The lm_head whole if it fits, else in slices of which two fit where possible."""
        rows, left = self.head.shape[0], self.memory - self.always
        per_row = max(self.head.stored_bytes, self.head.nbytes) // rows
        step = rows if self.head.nbytes <= left else max(SLICE, left // 2 // per_row // SLICE * SLICE)
        return [
            Unit(f"rows from {start} of the lm_head", (self.head.rows(start, min(start + step, rows)),))
            for start in range(0, rows, step)
        ]


def _matrices(placed: Mapping[str, FileTensor], prefix: str) -> dict[str, FileTensor]:
    own = {name: tensor for name, tensor in placed.items() if name.startswith(prefix) and tensor.is_matrix}
    return dict(sorted(own.items(), key=lambda item: (str(item[1].pieces[0].shard.path), item[1].pieces[0].start)))


def _mtp_bytes(weights: Weights, config: TextConfig, like: FileTensor) -> tuple[int, int]:
    """Bytes of the MTP head, and the most that loading it takes: twice as many if its tensors must be joined."""
    prefix = mtp_prefix(weights, config)
    stored = [tensor for name, tensor in weights.tensors.items() if prefix and name.startswith(prefix)]
    in_memory = sum(prod(tensor.shape) for tensor in stored) * like.dtype.itemsize
    in_file = sum(tensor.end - tensor.start for tensor in stored)
    return in_memory, in_memory + in_file
