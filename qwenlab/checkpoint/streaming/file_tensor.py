"""A tensor of the model whose values are in weight files: a view of the mapped file, or a copy of its pieces."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from threading import Event

import torch

from qwenlab.checkpoint.streaming.shard_file import Piece

_LARGE = 2**18
"""Bytes from which a copy gets pages of its own."""


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of the model, and the pieces of files that hold its values in row-major order."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # in memory
    pieces: tuple[Piece, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, or one per expert; not a vector, and not the kernel of a convolution per channel."""
        return len(self.shape) > 1 and (len(self.shape) == 2 or self.shape[1] > 1)

    @property
    def in_place(self) -> bool:
        """Whether the mapped file can be used as the tensor: one piece, of the same dtype, aligned."""
        first, *others = self.pieces
        return not others and first.dtype == self.dtype and first.start % self.dtype.itemsize == 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory while the tensor is present: whole pages of the file, or those of the copy."""
        return self.pieces[0].pages if self.in_place else prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes in the files."""
        return sum(piece.end - piece.start for piece in self.pieces)

    @property
    def where(self) -> str:
        """Files and byte ranges, as text."""
        return " ".join(f"{piece.shard.path.name}:{piece.start}-{piece.end}" for piece in self.pieces)

    def view(self) -> torch.Tensor:
        """The tensor as a view of the mapped file, which reads nothing yet."""
        (piece,) = self.pieces
        return torch.frombuffer(piece.shard.map, dtype=self.dtype, count=prod(self.shape), offset=piece.start).view(
            self.shape
        )

    def placeholder(self) -> torch.Tensor:
        """A tensor of this shape whose only element is NaN, for the time in which a copy is not in memory."""
        return torch.full((), torch.nan, dtype=self.dtype).expand(self.shape)

    def fetch(self, cancelled: Event) -> torch.Tensor:
        """Read the tensor: a view whose pages are in memory, or a copy in the dtype of the model.

        Stops early when `cancelled` is set; the result is then incomplete.
        """
        if self.in_place:
            (piece,) = self.pieces
            for _ in piece.shard.blocks(piece.start, piece.end):  # reads large blocks, unlike page faults
                if cancelled.is_set():
                    return self.view()
            piece.shard.populate(piece.start, piece.end)
            return self.view()
        return self.copied(cancelled)

    def rows(self, start: int, end: int) -> FileTensor:
        """The rows [start, end) of a tensor of one piece."""
        (piece,) = self.pieces
        row = (piece.end - piece.start) // self.shape[0]
        part = Piece(piece.shard, piece.dtype, piece.start + start * row, piece.start + end * row)
        return FileTensor((end - start, *self.shape[1:]), self.dtype, (part,))

    def copied(self, cancelled: Event) -> torch.Tensor:
        """A copy in the dtype of the model; incomplete once `cancelled` is set."""
        copy = _empty(self.shape, self.dtype)
        flat, at = copy.view(-1), 0
        for piece in self.pieces:
            for block in piece.shard.blocks(piece.start, piece.end):
                values = torch.frombuffer(block, dtype=piece.dtype)
                flat[at : at + len(values)].copy_(values)
                at += len(values)
                if cancelled.is_set():
                    return copy
            piece.shard.drop(piece.start, piece.end)
        return copy


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose memory returns to the system as soon as it is freed; malloc keeps some of it in its heaps."""
    if (size := prod(shape) * dtype.itemsize) < _LARGE:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
