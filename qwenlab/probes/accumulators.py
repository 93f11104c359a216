"""Sums and histograms of per-token values, on the device of the tensors, of a size independent of the token count."""

from __future__ import annotations

import math

import numpy as np
import torch

from qwenlab.capture.tokens import FOLDS, PADDING, TokenBatch

LayerSlice = slice
"""Consecutive layers among those of a probe."""


class Sums:
    """Sums of named per-token values by layer and group (label and fold), in float64."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._total: torch.Tensor | None = None
        self._columns: dict[str, slice] = {}

    def add(self, where: LayerSlice, tokens: TokenBatch, /, **values: torch.Tensor) -> None:
        """Add values [layer, batch, position, *shape] of the real tokens; those of padding may be NaN.

        The names and their shapes are the same every time.
        """
        flat = tokens.masked(torch.cat([self._flat(name, value) for name, value in values.items()], dim=-1), axis=1)
        self._merge(where, tokens.membership @ flat.flatten(1, 2).double())

    def add_rows(self, where: LayerSlice, groups: int, group: torch.Tensor, **values: torch.Tensor) -> None:
        """Add values [layer, row, *shape] to the groups `group` [row], out of `groups`."""
        columns = [self._flat(name, value[:, :, None])[:, :, 0] for name, value in values.items()]
        flat = torch.cat(columns, dim=-1).double()
        self._merge(where, flat.new_zeros(len(flat), groups, flat.shape[2]).index_add_(1, group, flat))

    def _flat(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Flatten [layer, batch, position, *shape] to [.., columns], and assign its columns at the first call."""
        flat = (value.flatten(3) if value.ndim > 3 else value[..., None]).float()
        if name not in self._columns:
            start = max((columns.stop for columns in self._columns.values()), default=0)
            self._columns[name] = slice(start, start + flat.shape[-1])
        return flat

    def _merge(self, where: LayerSlice, sums: torch.Tensor) -> None:
        if self._total is None:
            self._total = sums.new_zeros(self._layers, *sums.shape[1:])
        elif sums.shape[1] > self._total.shape[1]:
            self._total = torch.nn.functional.pad(self._total, (0, 0, 0, sums.shape[1] - self._total.shape[1]))
        self._total[where, : sums.shape[1]] += sums.to(self._total.device)

    def array(self, name: str, labels: int, *shape: int) -> np.ndarray:
        """float64 [label, fold, layer, *shape]"""
        rows = None if self._total is None or name not in self._columns else self._total[..., self._columns[name]]
        by_layer = _by_label(rows, self._layers, labels * FOLDS, math.prod(shape))
        return np.moveaxis(by_layer.reshape(self._layers, labels, FOLDS, *shape), 0, 2)

    def total(self, name: str) -> np.ndarray:
        """float64 [layer, column]: sums over all groups but padding's; no columns if nothing was added."""
        if self._total is None or name not in self._columns:
            return np.zeros((self._layers, 0))
        return self._total[:, 1:, self._columns[name]].sum(dim=1).cpu().numpy()


class Histogram:
    """Counts of per-token values in fixed bins by layer and label: a sketch of bounded size for quantiles."""

    def __init__(self, layers: int, bins: int) -> None:
        self._layers, self.bins = layers, bins
        self._counts: torch.Tensor | None = None

    def add(self, where: LayerSlice, tokens: TokenBatch, place: torch.Tensor) -> None:
        """Count the bins `place` [layer, batch, position, *shape] of the real tokens, rounded down.

        Values below or above go to the end bins. NaN is not counted, and shows as missing tokens.
        """
        flat = place.flatten(1, 2).flatten(2) if place.ndim > 3 else place.flatten(1, 2)[..., None]
        width = flat.shape[2]
        row = torch.where(flat.isnan(), PADDING, tokens.row.reshape(-1, 1))
        cell = torch.arange(width, device=flat.device) * self.bins + row * (width * self.bins)
        cell += flat.nan_to_num().clamp(0, self.bins - 1).long()
        size = (1 + tokens.labels) * width * self.bins
        if self._counts is None:
            self._counts = torch.zeros(self._layers, size, dtype=torch.int64, device=flat.device)
        elif size > self._counts.shape[1]:
            self._counts = torch.nn.functional.pad(self._counts, (0, size - self._counts.shape[1]))
        cell = cell.flatten(1).to(self._counts.device)
        self._counts[where].scatter_add_(1, cell, self._counts.new_ones(1).expand_as(cell))

    def array(self, labels: int, *shape: int) -> np.ndarray:
        """int64 [label, layer, *shape, bin]"""
        width = math.prod(shape) * self.bins
        rows = None if self._counts is None else self._counts.reshape(self._layers, -1, width)
        by_layer = _by_label(rows, self._layers, labels, width)
        return np.moveaxis(by_layer.reshape(self._layers, labels, *shape, self.bins), 0, 1).astype(np.int64)


class BinnedSums:
    """Sums of named values by layer, group (label and fold), column (head) and bin, in float64."""

    def __init__(self, layers: int, bins: int) -> None:
        self._layers, self.bins = layers, bins
        self._total: torch.Tensor | None = None  # [layer, group, bin, name, column]
        self._names: list[str] = []

    def add(
        self, where: LayerSlice, groups: int, group: torch.Tensor, place: torch.Tensor, **values: torch.Tensor
    ) -> None:
        """Add values [layer, row, column] to the groups `group` [row], out of `groups`.

        place  int, broadcastable to [layer, row, column]: the bin of each value
        The names and their shapes are the same every time.
        """
        flat = torch.stack(list(values.values()), dim=2).double()  # [layer, row, name, column]
        layers, _, names, columns = flat.shape
        self._names = list(values)
        if self._total is None:
            self._total = flat.new_zeros(self._layers, groups, self.bins, names, columns)
        elif groups > self._total.shape[1]:
            more = (0, 0, 0, 0, 0, 0, 0, groups - self._total.shape[1])
            self._total = torch.nn.functional.pad(self._total, more)
        cell = (group[:, None] * self.bins + place).expand(layers, -1, columns)[:, :, None].expand_as(flat).flatten(2)
        into = self._total[where].view(layers, -1, names * columns)
        into.scatter_add_(1, cell.to(into.device), flat.flatten(2).to(into.device))

    def array(self, name: str, labels: int, columns: int) -> np.ndarray:
        """float64 [label, fold, layer, column, bin]"""
        known = self._total is not None and name in self._names
        rows = self._total[:, :, :, self._names.index(name)].flatten(2) if self._total is not None and known else None
        by_layer = _by_label(rows, self._layers, labels * FOLDS, self.bins * columns)
        by_bin = by_layer.reshape(self._layers, labels, FOLDS, self.bins, columns)
        return by_bin.transpose(1, 2, 0, 4, 3)


def counted(values: np.ndarray) -> np.ndarray:
    """Convert sums of ones to integers."""
    return values.round().astype(np.int64)


def _by_label(rows: torch.Tensor | None, layers: int, labels: int, width: int) -> np.ndarray:
    """Return [layer, label, width] without padding's row; zeros for labels without a token."""
    out = np.zeros((layers, labels, width))
    if rows is not None:
        out[:, : rows.shape[1] - 1] = rows[:, 1:].cpu().numpy()
    return out
