"""Texts that the tests of states share."""

import pytest
import torch

from tests.probes.by_hand import layers_of
from tests.probes.reference import Text


@pytest.fixture(scope="session")
def texts(model):
    """Four texts, whose tokens take turns with two labels in places."""
    random = torch.Generator().manual_seed(0)
    out = []
    for number, length in enumerate((90, 1, 9, 33)):
        tokens = torch.randint(1, 280, (length,), generator=random)
        label = [number % 2 if position < 20 else (position // 3) % 2 for position in range(length)]
        out.append((tokens, Text(layers_of(model, tokens), number, label)))
    return out
