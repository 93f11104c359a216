"""Score one batch of texts under ablations, each against the intact model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.prefix import record_prefix, reuse_prefix
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.interventions.session import intervene
from qwenlab.tasks.grading import Reference, TaskBatch, grade

OF_BOTH = ("kl", "agreement")
"""Scores that compare the distributions of both models."""


@dataclass(frozen=True)
class BatchScores:
    """The scores of the texts of a batch.

    ablation  index of the ablation; None for the intact model
    texts     index of each text among those of all tasks
    scores    float64 [text] by name
    layers    layers that ran for it, and layers of a whole pass
    """

    ablation: int | None
    texts: tuple[int, ...]
    scores: dict[str, np.ndarray]
    layers: tuple[int, int] = (0, 0)


@torch.no_grad()
def score_batch(
    checkpoint: Checkpoint,
    batch: TaskBatch,
    ablations: Sequence[Ablation],
    indices: Iterable[int],
    names: Sequence[str],
) -> Iterator[BatchScores]:
    """Score a batch with the intact model, then under the ablations with these indices, from the lowest layer up.

    names  of the scores; those that compare both models cost time, so they are computed only if they are among these

    Ablations with the same interventions run once: a control may be one of the units.
    """
    decoder = decoder_of(checkpoint.model)
    with record_prefix(decoder) as prefix:
        clean = logits_of(checkpoint, batch)
    yield BatchScores(None, batch.texts, as_arrays(grade(batch, clean)))
    intact = Reference(clean) if set(OF_BOTH) & set(names) else None
    graded: dict[str, dict[str, np.ndarray]] = {}
    for index in sorted(indices, key=lambda index: ablations[index].lowest_layer):
        ablation, run = ablations[index], 0
        if ablation.intervention not in graded:
            with (
                intervene(checkpoint.model, *ablation.interventions) as session,
                reuse_prefix(prefix, session) as skipped,
            ):
                logits = logits_of(checkpoint, batch)
            graded[ablation.intervention] = as_arrays(grade(batch, logits, intact))
            run = len(decoder.layers) - skipped
        yield BatchScores(index, batch.texts, graded[ablation.intervention], (run, len(decoder.layers)))


def logits_of(checkpoint: Checkpoint, batch: TaskBatch) -> torch.Tensor:
    """Logits of a batch at the positions that it needs, read in one pass."""
    logits: torch.Tensor = checkpoint.model(**batch.inputs, use_cache=False).logits
    return logits


def as_arrays(scores: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Scores as float64 arrays on the host."""
    return {name: values.double().cpu().numpy() for name, values in scores.items()}
