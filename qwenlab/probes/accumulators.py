"""Sums and histograms of per-token values, on the device of the tensors, of a size independent of the token count."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import torch

from qwenlab.capture.tokens import FOLDS, PADDING, TokenBatch

MAX_SUMMED = 2**22
"""Values in float64 in memory at a time, in sums over tokens (elements): those of a block of tokens."""

LayerSlice = slice
"""Consecutive layers among those of a probe."""

T = TypeVar("T")


class Accumulator:
    """Base class of what sums up values over passes, so that `copied` copies it."""


def copied(value: T) -> T:
    """Return a copy that later passes do not change, of an accumulator or of tensors, lists and dicts of them."""
    new: Any = value
    if isinstance(value, torch.Tensor):
        new = value.clone()
    elif isinstance(value, list):
        new = [copied(each) for each in value]
    elif isinstance(value, dict):
        new = copy.copy(value)
        new.update((key, copied(each)) for key, each in value.items())
    elif isinstance(value, Accumulator):
        new = object.__new__(type(value))
        vars(new).update(copied(vars(value)))
    return new


class Totals(Accumulator):
    """Totals [layer, row, ...] for all layers of a probe. Rows are appended when they are first needed."""

    def __init__(self, layers: int, dtype: torch.dtype = torch.float64) -> None:
        self.total = torch.zeros(layers, 0, 0, dtype=dtype)

    def at_least(self, rows: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Return the totals, with this many rows or more of this shape."""
        layers, before, *_ = self.total.shape
        if not before:
            self.total = self.total.new_zeros(layers, rows, *shape, device=device)
        elif rows > before:
            self.total = torch.cat([self.total, self.total.new_zeros(layers, rows - before, *shape)], dim=1)
        return self.total

    def add(self, where: LayerSlice, values: torch.Tensor, first: int = 0) -> None:
        """Add values [layer, row, ...] to the rows from `first` on."""
        end = first + values.shape[1]
        rows = self.at_least(end, values.shape[2:], values.device)[where, first:end]
        rows += values.to(rows.device)

    def array(self, rows: int, *shape: int, at: tuple[slice | int, ...] = ()) -> np.ndarray:
        """[layer, row, *shape], 0 where nothing was added. `at` selects some of the values of a row."""
        layers, added, *_ = self.total.shape
        out = torch.zeros(layers, rows, *shape, dtype=self.total.dtype)
        if added and (part := self.total[:, :, *at]).numel():
            out[:, :added] = part.reshape(layers, added, *shape).cpu()
        return out.numpy()

    def by_group(self, labels: int, *shape: int, at: tuple[slice | int, ...] = ()) -> np.ndarray:
        """[label, fold, layer, *shape] of rows that are groups, without padding's."""
        rows = self.array(1 + labels * FOLDS, *shape, at=at)[:, 1:]
        return np.moveaxis(rows.reshape(len(rows), labels, FOLDS, *shape), 0, 2)


class Sums(Accumulator):
    """Sums of named per-token values by layer and group (label and fold), in float64."""

    def __init__(self, layers: int) -> None:
        self._totals = Totals(layers)
        self._columns: dict[str, slice] = {}

    def add(self, where: LayerSlice, tokens: TokenBatch, /, **values: torch.Tensor) -> None:
        """Add values [layer, batch, position, *shape] of the real tokens, with the same names and shapes every time."""
        columns = torch.cat([self._flat(name, value) for name, value in values.items()], dim=-1)
        flat = tokens.masked(columns, axis=1).flatten(1, 2)
        layers, count, width = flat.shape
        most = max(1, MAX_SUMMED // (layers * width + len(tokens.span)))
        for start in range(0, count, most):
            some = slice(start, start + most)
            sums = _membership(tokens, some) @ flat[:, some].double()
            self._totals.add(where, sums[:, 1:], tokens.span.start)

    def add_rows(self, where: LayerSlice, groups: int, group: torch.Tensor, **values: torch.Tensor) -> None:
        """Add values [layer, row, *shape] to the groups `group` [row], out of `groups`."""
        columns = [self._flat(name, value[:, :, None])[:, :, 0] for name, value in values.items()]
        flat = torch.cat(columns, dim=-1).double()
        self._totals.add(where, flat.new_zeros(len(flat), groups, flat.shape[2]).index_add_(1, group, flat))

    def _flat(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Flatten [layer, batch, position, *shape] to [.., columns], and assign its columns at the first call."""
        flat = (value.flatten(3) if value.ndim > 3 else value[..., None]).float()
        if name not in self._columns:
            start = max((columns.stop for columns in self._columns.values()), default=0)
            self._columns[name] = slice(start, start + flat.shape[-1])
        return flat

    def array(self, name: str, labels: int, *shape: int) -> np.ndarray:
        """float64 [label, fold, layer, *shape]"""
        return self._totals.by_group(labels, *shape, at=(self._columns.get(name, slice(0)),))

    def total(self, name: str) -> np.ndarray:
        """float64 [layer, column]: sums over all groups but padding's; no columns if nothing was added."""
        return self._totals.total[:, 1:, self._columns.get(name, slice(0))].sum(dim=1).cpu().numpy()


def _membership(tokens: TokenBatch, some: slice) -> torch.Tensor:
    """Return float64 [1 + group of `tokens.span`, some tokens]: 1 where the token is in the group.

    The first row is not used: a product of 8 rows is summed in another order than that of 9 or more, and the last bit
    of a sum would depend on the number of labels.
    """
    groups = torch.arange(tokens.span.start - 1, tokens.span.stop, device=tokens.group.device)[:, None]
    if some.start == 0 and some.stop >= tokens.group.numel():
        return tokens.once("membership", lambda: (groups == tokens.group.flatten()).double())
    return (groups == tokens.group.flatten()[some]).double()


class Histogram(Accumulator):
    """Counts of per-token values in fixed bins by layer and label: a sketch of bounded size for quantiles."""

    def __init__(self, layers: int, bins: int) -> None:
        self._counts, self.bins = Totals(layers, torch.int64), bins

    def add(self, where: LayerSlice, tokens: TokenBatch, place: torch.Tensor) -> None:
        """Count the bins `place` [layer, batch, position, *shape] of the real tokens, rounded down; NaN is not counted.

        Values below or above go to the end bins.
        """
        flat = place.flatten(1, 2).flatten(2) if place.ndim > 3 else place.flatten(1, 2)[..., None]
        width = flat.shape[2]
        row = torch.where(flat.isnan(), PADDING, tokens.row.reshape(-1, 1))
        cell = torch.arange(width, device=flat.device) * self.bins + row * (width * self.bins)
        cell += flat.nan_to_num().clamp(0, self.bins - 1).long()
        counts = self._counts.at_least(1 + tokens.labels, (width * self.bins,), flat.device)
        cell = cell.flatten(1).to(counts.device)
        counts[where].flatten(1).scatter_add_(1, cell, counts.new_ones(1).expand_as(cell))

    def array(self, labels: int, *shape: int) -> np.ndarray:
        """int64 [label, layer, *shape, bin]"""
        return np.moveaxis(self._counts.array(1 + labels, *shape, self.bins)[:, 1:], 0, 1)


class BinnedSums(Accumulator):
    """Sums of named values by layer, group (label and fold), column (head) and bin, in float64."""

    def __init__(self, layers: int, bins: int) -> None:
        self._totals, self.bins = Totals(layers), bins  # [layer, group, bin, name, column]
        self._names: list[str] = []

    def add(
        self, where: LayerSlice, groups: int, group: torch.Tensor, place: torch.Tensor, **values: torch.Tensor
    ) -> None:
        """Add values [layer, row, column] to the groups `group` [row], out of `groups`, with the same names every time.

        `place` int, broadcastable to [layer, row, column]: the bin of each value.
        """
        flat = torch.stack(list(values.values()), dim=2).double()  # [layer, row, name, column]
        layers, _, names, columns = flat.shape
        self._names = list(values)
        total = self._totals.at_least(groups, (self.bins, names, columns), flat.device)
        cell = (group[:, None] * self.bins + place).expand(layers, -1, columns)[:, :, None].expand_as(flat).flatten(2)
        into = total[where].view(layers, -1, names * columns)
        into.scatter_add_(1, cell.to(into.device), flat.flatten(2).to(into.device))

    def array(self, name: str, labels: int, columns: int) -> np.ndarray:
        """float64 [label, fold, layer, column, bin]"""
        at = (slice(None), self._names.index(name) if self._names else 0)
        return self._totals.by_group(labels, self.bins, columns, at=at).swapaxes(3, 4)


def counted(values: np.ndarray) -> np.ndarray:
    """Convert sums of ones to integers."""
    return values.round().astype(np.int64)
