"""The weights that are brought into memory together: those of one layer, or some rows of the lm_head."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Event

import torch
from torch import nn

from qwenlab.checkpoint.streaming.file_tensor import FileTensor
from qwenlab.checkpoint.streaming.shard_file import ShardFile
from qwenlab.checkpoint.weights.in_files import moved, where_stored
from qwenlab.errors import CannotStream

_GAP = 2**20
"""Bytes between tensors, such as the vectors between matrices, that are dropped with them."""


@dataclass(eq=False)
class Unit:
    """Tensors that are present together.

    name        for messages: "layer 3"
    tensors     where their values are
    parameters  the parameters of the model with these values, by name; empty for rows of a parameter
    depth       how many `present` blocks of this unit are open
    values      the tensors while the unit is present
    """

    name: str
    tensors: tuple[FileTensor, ...]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    depth: int = 0
    values: tuple[torch.Tensor, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        """Bytes in memory while the unit is present."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes in the files."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @cached_property
    def shards(self) -> set[ShardFile]:
        """The files of the tensors."""
        return {piece.shard for tensor in self.tensors for piece in tensor.pieces}

    @cached_property
    def _ranges(self) -> list[tuple[ShardFile, int, int]]:
        """Byte ranges of the files that hold the unit. Only whole pages are dropped: neighbours are one range."""
        ranges: list[tuple[ShardFile, int, int]] = []
        pieces = [piece for tensor in self.tensors for piece in tensor.pieces]
        for piece in sorted(pieces, key=lambda piece: (piece.shard.path, piece.start)):
            if ranges and ranges[-1][0] is piece.shard and piece.start - ranges[-1][2] < _GAP:
                ranges[-1] = (piece.shard, ranges[-1][1], piece.end)
            else:
                ranges.append((piece.shard, piece.start, piece.end))
        return ranges

    def require_unchanged(self) -> None:
        """Raise WeightsChanged for a changed file, and CannotStream for a parameter that was edited or converted."""
        for shard in self.shards:
            shard.require_unchanged()
        if edited := [name for name, parameter in self.parameters.items() if where_stored(parameter) is None]:
            raise CannotStream(
                f"{', '.join(edited[:3])} was changed in memory, and {self.name} is read from its file for every pass, "
                "so the change would be lost.\nOpen the checkpoint without memory=... to edit its weights, with "
                "dtype=... to convert them, or use ql.intervene to change what a layer computes."
            )

    def fetch(self, cancelled: Event) -> tuple[torch.Tensor, ...]:
        """Read all tensors into memory, unless cancelled."""
        values: list[torch.Tensor] = []
        for tensor in self.tensors:
            if not cancelled.is_set():
                values.append(tensor.fetch(cancelled))
        return tuple(values)

    def attach(self, values: tuple[torch.Tensor, ...]) -> None:
        """Make these the values of the parameters."""
        self.values = values
        if self.parameters:
            self._set(values)

    def drop(self) -> None:
        """Remove the tensors from memory; a parameter that was copied becomes a placeholder."""
        was_attached, self.values = bool(self.values), ()
        if self.parameters and was_attached:
            self._set(tuple(tensor.placeholder() for tensor in self.tensors))
        for shard, start, end in self._ranges:
            shard.drop(start, end)

    def _set(self, values: tuple[torch.Tensor, ...]) -> None:
        for tensor, parameter, value in zip(self.tensors, self.parameters.values(), values, strict=True):
            if not tensor.in_place and where_stored(parameter) is not None:
                parameter.data = value
                moved(parameter)
