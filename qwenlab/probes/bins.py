"""Bins of the histograms and of the sums by distance or position."""

from __future__ import annotations

import math

import numpy as np
import torch

GATE_BINS = 128
HALF_LIFE_FIRST, HALF_LIFE_BINS, BINS_AN_OCTAVE = -6, 160, 5
"""Half-lives are binned from 2**-6 tokens in fifths of an octave; the end bins take all values beyond."""

DISTANCE_EDGES = (0, 1, 2, 3, *(int(2**octave * step) for octave in range(2, 26) for step in (1, 1.5)), 2**26)
"""Lower edges, in tokens, of the bins of attention distance: one per token up to 4, then two per octave."""

OCTAVES = 22
POSITION_EDGES = np.concatenate([[0], 2 ** np.arange(OCTAVES - 1)])
"""Lower edges of the bins by octave: 0, 1, 2-3, 4-7, ...; the last bin takes everything from 2^20 on."""

Coordinate = tuple[str, np.ndarray, dict[str, str]]
"""Dim, values and attributes of a coordinate."""


def half_life_bin(g: torch.Tensor) -> torch.Tensor:
    """Return the bin of each token's half-life ln(1/2) / g, g = ln alpha <= 0; infinite where nothing decays."""
    octave = math.log2(math.log(2)) - torch.log2(-g)
    return ((octave - HALF_LIFE_FIRST) * BINS_AN_OCTAVE).floor()


def octave_of(number: torch.Tensor) -> torch.Tensor:
    """Return the bin by octave of numbers, rounded down to integers."""
    _, exponent = torch.frexp(number.double().floor().clamp_min(0))
    return exponent.long().clamp_max(OCTAVES - 1)


def lower_edges(dim: str, edges: np.ndarray, units: str) -> Coordinate:
    """Return the coordinate of a dim of bins."""
    return (dim, edges, {"units": units, "long_name": "lower edge"})


def unit_bins(dim: str, largest: int = 1) -> Coordinate:
    """Return the coordinate of `GATE_BINS` equal bins from 0 to `largest`."""
    return lower_edges(dim, np.arange(GATE_BINS) * (largest / GATE_BINS), "1")


BINS: dict[str, Coordinate] = {
    "beta_bin": unit_bins("beta_bin"),
    "gate_bin": unit_bins("gate_bin"),
    "half_life_bin": lower_edges(
        "half_life_bin", 2.0 ** (HALF_LIFE_FIRST + np.arange(HALF_LIFE_BINS) / BINS_AN_OCTAVE), "token"
    ),
    "distance_bin": lower_edges("distance_bin", np.array(DISTANCE_EDGES), "token"),
    "position_bin": lower_edges("position_bin", POSITION_EDGES, "token"),
}
"""The coordinate of each dim of bins, unless a probe gives its own."""
