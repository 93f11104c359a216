"""Seed every random number generator that a notebook may use."""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  a notebook may use the global generator
    torch.manual_seed(seed)
