"""Every generator of random numbers that a notebook draws from, started at one number."""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global one is what a notebook may draw from
    torch.manual_seed(seed)
