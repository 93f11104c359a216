"""Open a checkpoint in a notebook: nothing on screen but the notebook's own outputs, and threads to fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.open import open as open_checkpoint

SMALL = 1e8
"""Parameters of a model below which more threads cost time: its matrices are too small to share."""


def open_quietly(checkpoint: str | Path, **options: Any) -> Checkpoint:
    """`ql.open`, without messages of transformers (which kernels ran is in the recording).

    A model of fewer than `SMALL` parameters gets one torch thread; for others torch's setting is left as it is.
    """
    transformers.logging.set_verbosity_error()
    opened = open_checkpoint(checkpoint, **options)
    if opened.facts.parameters < SMALL:
        torch.set_num_threads(1)
    return opened
