"""Tiny checkpoints on disk, opened whole and as a stream with the smallest budget that works."""

import re

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import MemoryTooSmall
from qwenlab.testing.checkpoints import tiny_checkpoint

TOKENS = torch.randint(0, 270, (2, 19), generator=torch.Generator().manual_seed(0))


def smallest(folder, **options):
    """The smallest budget for a folder, as the error states it."""
    with pytest.raises(MemoryTooSmall) as caught:
        ql.open(folder, memory=1, **options)
    return int(re.search(r"Give ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoint(tmp_path / "tiny", "qwen3_5", mtp=None, hidden_size=256, intermediate_size=1024)


@pytest.fixture
def streamed(folder):
    return ql.open(folder, memory=smallest(folder))
