"""Sums and histograms that stay where the tensors are born and never grow with the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from qwenlab.probe.reading import FOLDS, PADDING, Reading


class Sums:
    """Sums of per-token values by group (label and fold), in float64: of several at once, each under its name."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._columns: dict[str, slice] = {}

    def add(self, reading: Reading, **values: torch.Tensor) -> None:
        """Add values [batch, position, *shape] of the real tokens; those of padding may be NaN.

        The names and their shapes are the same every time.
        """
        flat = reading.masked(torch.cat([self._flat(name, value) for name, value in values.items()], dim=-1))
        self._merge(reading.membership @ flat.flatten(0, 1).double())

    def move(self, groups: int, group: torch.Tensor, **values: torch.Tensor) -> None:
        """Add values [row, *shape] to the groups `group` [row], of `groups` in all."""
        flat = torch.cat([self._flat(name, value[:, None])[:, 0] for name, value in values.items()], dim=-1).double()
        self._merge(flat.new_zeros(groups, flat.shape[1]).index_add_(0, group, flat))

    def _flat(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """[batch, position, *shape] as [batch, position, columns], whose place among all columns is noted."""
        flat = (value.flatten(2) if value.ndim > 2 else value[..., None]).float()
        if name not in self._columns:
            start = max((columns.stop for columns in self._columns.values()), default=0)
            self._columns[name] = slice(start, start + flat.shape[-1])
        return flat

    def _merge(self, total: torch.Tensor) -> None:
        if self._total is not None:
            if len(total) < len(self._total):
                total, self._total = self._total, total
            total[: len(self._total)] += self._total
        self._total = total

    def array(self, name: str, labels: int, *shape: int) -> np.ndarray:
        """float64 [label, fold, *shape]"""
        rows = None if self._total is None or name not in self._columns else self._total[:, self._columns[name]]
        return _by_label(rows, labels, FOLDS, *shape)


class Histogram:
    """Counts of per-token values in fixed bins, by label: a sketch of bounded size for quantiles."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._counts: torch.Tensor | None = None

    def add(self, reading: Reading, place: torch.Tensor) -> None:
        """Count the bins `place` [batch, position, *shape] of the real tokens, rounded down.

        What lies below or beyond goes to the end bins; NaN is not counted, and is seen as tokens that are missing.
        """
        flat = place.flatten(0, 1).flatten(1) if place.ndim > 2 else place.reshape(-1, 1)
        width = flat.shape[1]
        row = torch.where(flat.isnan(), PADDING, reading.row.reshape(-1, 1))
        cell = torch.arange(width, device=flat.device) * self.bins + row * (width * self.bins)
        cell += flat.nan_to_num().clamp(0, self.bins - 1).long()
        size = (1 + reading.labels) * width * self.bins
        if self._counts is None:
            self._counts = torch.zeros(size, dtype=torch.int64, device=flat.device)
        elif size > len(self._counts):
            self._counts = torch.nn.functional.pad(self._counts, (0, size - len(self._counts)))
        self._counts.scatter_add_(0, cell.flatten(), self._counts.new_ones(1).expand(cell.numel()))

    def array(self, labels: int, *shape: int) -> np.ndarray:
        """int64 [label, *shape, bin]"""
        width = math.prod(shape) * self.bins
        rows = None if self._counts is None else self._counts.reshape(-1, width)
        return _by_label(rows, labels, 1, *shape, self.bins)[:, 0].astype(np.int64)


def by_layer(tallies: Iterable[Sums], name: str, labels: int, *shape: int) -> np.ndarray:
    """float64 [label, fold, layer, *shape] of one tally a layer."""
    return np.stack([tally.array(name, labels, *shape) for tally in tallies], axis=2)


def counted(values: np.ndarray) -> np.ndarray:
    """Sums of ones, as the whole numbers they are."""
    return values.round().astype(np.int64)


def _by_label(rows: torch.Tensor | None, labels: int, folds: int, *shape: int) -> np.ndarray:
    """Drop padding's row and give every label its rows, those never met included."""
    out = np.zeros((labels * folds, math.prod(shape)))
    if rows is not None:
        out[: len(rows) - 1] = rows[1:].cpu().numpy()
    return out.reshape(labels, folds, *shape)
