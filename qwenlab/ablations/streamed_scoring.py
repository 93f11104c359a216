"""Score ablations of a checkpoint that is read from its files: all of them go through a layer while it is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch

from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.scoring import OF_BOTH, BatchScores, as_arrays, logits_of
from qwenlab.capture.active import active_interventions
from qwenlab.capture.layer_major import Branch
from qwenlab.capture.streamed_calls import run_streamed
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.streaming.stream import WeightStream
from qwenlab.interventions.session import intervene
from qwenlab.tasks.grading import Reference, TaskBatch, grade

MOST_CALLS = 1024
"""Passes that go through the layers together: each that waits takes about 100 KiB and its hidden states."""

Work = tuple[TaskBatch, Sequence[int]]
"""A batch, and the indices of the ablations under which it is scored."""


@torch.no_grad()
def score_streamed(
    checkpoint: Checkpoint,
    stream: WeightStream,
    ablations: Sequence[Ablation],
    left: Sequence[Work],
    names: Sequence[str],
    progress: bool,
) -> Iterator[BatchScores]:
    """Score batches with the intact model and under ablations; the files are read once, or once per MOST_CALLS passes.

    A pass under an ablation begins at the lowest layer that it changes, with the hidden state of the intact model.
    Arguments as in `score_batch`, and `left` for all batches.
    """
    group: list[Work] = []
    for batch, indices in left:
        if group and _calls_in([*group, (batch, indices)], ablations) > MOST_CALLS:
            yield from _score_group(checkpoint, stream, ablations, group, names, progress)
            group = []
        group.append((batch, indices))
    if group:
        yield from _score_group(checkpoint, stream, ablations, group, names, progress)


def _score_group(
    checkpoint: Checkpoint,
    stream: WeightStream,
    ablations: Sequence[Ablation],
    group: Sequence[Work],
    names: Sequence[str],
    progress: bool,
) -> Iterator[BatchScores]:
    decoder = decoder_of(checkpoint.model)
    layers = len(decoder.layers)
    outside = bool(active_interventions(decoder.module))  # they act in every layer, also below a branch
    calls: list[Callable[[], torch.Tensor] | Branch[torch.Tensor]] = []
    for batch, indices in group:
        intact = len(calls)
        calls.append(partial(logits_of, checkpoint, batch))
        for changed in _by_intervention(ablations, indices).values():
            ablation = ablations[changed[0]]
            first = 0 if outside else ablation.lowest_layer
            calls.append(Branch(partial(_changed_logits, checkpoint, batch, ablation), intact, first))
    with closing(run_streamed(checkpoint.model, stream, calls, progress=progress)) as results:
        for batch, indices in group:
            clean = next(results)
            yield BatchScores(None, batch.texts, as_arrays(grade(batch, clean)))
            reference = Reference(clean) if set(OF_BOTH) & set(names) else None
            for changed in _by_intervention(ablations, indices).values():
                scores = as_arrays(grade(batch, next(results), reference))
                run = layers - (0 if outside else ablations[changed[0]].lowest_layer)
                for index in changed:
                    yield BatchScores(index, batch.texts, scores, (run, layers))
                    run = 0


def _changed_logits(checkpoint: Checkpoint, batch: TaskBatch, ablation: Ablation) -> torch.Tensor:
    with intervene(checkpoint.model, *ablation.interventions):
        return logits_of(checkpoint, batch)


def _calls_in(group: Sequence[Work], ablations: Sequence[Ablation]) -> int:
    return sum(1 + len(_by_intervention(ablations, indices)) for _, indices in group)


def _by_intervention(ablations: Sequence[Ablation], indices: Sequence[int]) -> dict[str, list[int]]:
    """Group the ablations that run once: a control may be one of the units."""
    alike: dict[str, list[int]] = {}
    for index in sorted(indices, key=lambda index: ablations[index].lowest_layer):
        alike.setdefault(ablations[index].intervention, []).append(index)
    return alike
