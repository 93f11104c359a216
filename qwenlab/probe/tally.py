"""Sums and histograms that stay where the tensors are born and never grow with the number of tokens."""

from __future__ import annotations

import numpy as np
import torch

from qwenlab.probe.reading import FOLDS, Reading


class Sums:
    """Sums of per-token values by group (label and fold), in float64."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._shape: tuple[int, ...] = ()

    def add(self, reading: Reading, values: torch.Tensor) -> None:
        """Add `values` [batch, position, *shape] of the real tokens; those of padding are never read (they may be NaN)."""
        self._shape = tuple(values.shape[2:])
        real = reading.real.reshape(*reading.real.shape, *(1,) * len(self._shape))
        values = torch.where(real, values, 0).double()
        self._merge(reading.membership @ values.reshape(reading.membership.shape[1], -1))

    def move(self, groups: int, group: torch.Tensor, values: torch.Tensor) -> None:
        """Add `values` [row, *shape] to the groups `group` [row]."""
        self._shape = tuple(values.shape[1:])
        by_row = values.reshape(len(values), -1).double()
        self._merge(torch.zeros(groups, by_row.shape[1], dtype=torch.float64, device=group.device).index_add_(0, group, by_row))

    def _merge(self, total: torch.Tensor) -> None:
        if self._total is not None:
            if len(total) < len(self._total):
                total, self._total = self._total, total
            total[: len(self._total)] += self._total
        self._total = total

    def array(self, labels: int) -> np.ndarray:
        """float64 [label, fold, *shape]"""
        return _by_label(self._total, labels, FOLDS, self._shape)


class Histogram:
    """Counts of per-token values in fixed bins, by label: a sketch of bounded size for quantiles."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._counts: torch.Tensor | None = None
        self._shape: tuple[int, ...] = ()

    def add(self, reading: Reading, bin_index: torch.Tensor) -> None:
        """Count `bin_index` [batch, position, *shape] of the real tokens; below and beyond go to the end bins."""
        self._shape = tuple(bin_index.shape[2:])
        width = int(np.prod(self._shape)) if self._shape else 1
        flat = bin_index.reshape(-1, width).clamp(0, self.bins - 1).long()
        place = (reading.row.reshape(-1, 1) * width + torch.arange(width, device=flat.device)) * self.bins + flat
        total = (1 + reading.labels) * width * self.bins
        if self._counts is None:
            self._counts = torch.zeros(total, dtype=torch.int64, device=flat.device)
        elif len(self._counts) < total:
            self._counts = torch.cat([self._counts, self._counts.new_zeros(total - len(self._counts))])
        self._counts.scatter_add_(0, place.flatten(), self._counts.new_ones(1).expand(place.numel()))

    def array(self, labels: int) -> np.ndarray:
        """int64 [label, *shape, bin]"""
        rows = None if self._counts is None else self._counts.reshape(-1, int(np.prod(self._shape)) * self.bins)
        return _by_label(rows, labels, 1, (*self._shape, self.bins))[:, 0].astype(np.int64)


def _by_label(rows: torch.Tensor | None, labels: int, folds: int, shape: tuple[int, ...]) -> np.ndarray:
    """Drop padding's row 0 and give every label its rows, those never met included."""
    out = np.zeros((labels * folds, int(np.prod(shape))))
    if rows is not None:
        kept = rows[1:].cpu().numpy()[: len(out)]
        out[: len(kept)] = kept
    return out.reshape(labels, folds, *shape)
