"""Bins of the histograms of gates and half-lives."""

from __future__ import annotations

import math

import numpy as np
import torch

GATE_BINS = 128
HALF_LIFE_FIRST, HALF_LIFE_BINS, BINS_AN_OCTAVE = -6, 160, 5
"""Half-lives are binned from 2**-6 tokens in fifths of an octave; the end bins take all values beyond."""


def half_life_bin(g: torch.Tensor) -> torch.Tensor:
    """Return the bin of each token's half-life ln(1/2) / g, g = ln alpha <= 0; infinite where nothing decays."""
    octave = math.log2(math.log(2)) - torch.log2(-g)
    return ((octave - HALF_LIFE_FIRST) * BINS_AN_OCTAVE).floor()


def gate_bins() -> tuple[str, np.ndarray, dict[str, str]]:
    """Return the coordinate of the bins of gate openness."""
    return ("gate_bin", np.arange(GATE_BINS) / GATE_BINS, {"units": "1", "long_name": "lower edge"})


def bins() -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    """Return the coordinates of all bins of a DeltaNet layer."""
    half_life = 2.0 ** (HALF_LIFE_FIRST + np.arange(HALF_LIFE_BINS) / BINS_AN_OCTAVE)
    return {
        "beta_bin": ("beta_bin", *gate_bins()[1:]),
        "gate_bin": gate_bins(),
        "half_life_bin": ("half_life_bin", half_life, {"units": "token", "long_name": "lower edge"}),
    }
