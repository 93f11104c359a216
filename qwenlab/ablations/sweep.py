"""`sweep`: score many ablations on many tasks, each against the intact model on the same batch."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, coordinates
from qwenlab.ablations.resume import BY_TEXT, ScoreTable, key_of
from qwenlab.ablations.scoring import BatchScores, score_batch
from qwenlab.ablations.streamed_scoring import score_streamed
from qwenlab.ablations.workers import score_in_workers
from qwenlab.arguments import choice, integer
from qwenlab.capture.active import active_interventions
from qwenlab.capture.provenance import provenance_of, running_on
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.errors import BadArgument, InterruptedWarning
from qwenlab.tasks.grading import TaskBatch, check_tasks, task_batches
from qwenlab.tasks.measuring import by_text
from qwenlab.tasks.task import Task

SCORES = {
    "loss": ("nat/token", "loss of the tokens asked for, mean over them"),
    "accuracy": ("1", "tokens asked for that are the first choice"),
    "kl": ("nat/token", "KL divergence of the intact model's next-token distribution from the ablated one's"),
    "agreement": ("1", "tokens asked for at which both models have the same first choice"),
}


def sweep(
    checkpoint: Checkpoint,
    ablations: Sequence[Ablation],
    tasks: Sequence[Task],
    *,
    scores: Sequence[str] = tuple(SCORES),
    batch_size: int = 8,
    workers: int = 1,
    resume: str | PathLike[str] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Scores of every ablation on every text of the tasks, and of the intact model on the same texts.

    All scores of a batch come from one forward pass. The intact model reads a batch first; under an ablation, the
    layers below the lowest changed layer do not run again, nor does the mixer of that layer unless something inside it
    changes. Inside the block of other interventions, "intact" means the model under those.

    scores      those to compute; kl and agreement cost time of their own
    batch_size  sequences per batch: memory holds the logits of two models, [batch, asked positions, vocabulary], the
                values of the lowest layers (256 MiB) and of one more, and log-probabilities of the intact model
                (512 MiB)
    workers     processes over which the ablations are spread, each with a copy of the model, opened from its files, on
                the CPU, and with its share of torch's threads
    resume      a file that stores the scores as they are computed; if it exists, the sweep resumes from it

    returns  loss, accuracy, kl, agreement [ablation, text], as `qwenlab.tasks.grade` defines them; clean_loss and
             clean_accuracy [text] of the intact model; chance [text], NaN for plain text; coordinates describe
             each ablation, and give the task of each text
    attrs    provenance; layers_run: layers run under ablations over those of as many whole forward passes

    A checkpoint opened with `memory=` is read once for all batches and ablations, which go through each layer together;
    then no score is known, and none stored in `resume`, before the last layer.

    When interrupted, it returns the texts that every ablation has read, with a warning. Raises BadArgument, and the
    errors of the interventions; with workers, WorkerDied.
    """
    require_checkpoint(checkpoint)
    integer("sweep", "workers", workers, least=1)
    check_ablations("sweep(checkpoint, ablations, tasks)", ablations)
    check_tasks("sweep", tasks)
    scores = _chosen(scores)
    batches = list(task_batches(checkpoint, tasks, batch_size=batch_size))
    decoder = decoder_of(checkpoint.model)
    running = running_on(decoder)["dtype"], *active_interventions(decoder.module)
    key = key_of([checkpoint.hash_now(), *running], ablations, tasks, scores)
    table = ScoreTable(resume, key, len(ablations), sum(len(task.tokens) for task in tasks), scores)
    left = [(batch, missing) for batch in batches if (missing := table.missing(batch.texts))]
    with tqdm(total=table.done.size, unit="text", desc="ablating", disable=not progress) as bar:
        bar.update(table.done.size - sum(len(batch.texts) * len(missing) for batch, missing in left))
        try:
            with closing(_scored(checkpoint, ablations, left, scores, workers, progress)) as scored:
                for found in scored:
                    table.put(found)
                    bar.update(0 if found.ablation is None else len(found.texts))
        except KeyboardInterrupt:
            if not table.complete.any():
                raise
            warnings.warn(
                f"The sweep was interrupted after {int(table.complete.sum())} of {len(table.complete)} texts; "
                "it returns those.",
                InterruptedWarning,
                stacklevel=2,
            )
        finally:
            table.save()
    return _dataset(checkpoint, ablations, tasks, table)


def _chosen(scores: Sequence[str]) -> tuple[str, ...]:
    """The chosen scores in their own order. Raises BadArgument for none, or a name that is not one."""
    if isinstance(scores, str) or not scores:
        raise BadArgument(f"sweep(scores={scores!r}): give a list of scores, such as ['loss', 'accuracy'].")
    for name in scores:
        choice("sweep", "scores", name, SCORES)
    return tuple(name for name in SCORES if name in scores)


def _scored(
    checkpoint: Checkpoint,
    ablations: Sequence[Ablation],
    left: Sequence[tuple[TaskBatch, Sequence[int]]],
    scores: Sequence[str],
    workers: int,
    progress: bool,
) -> Generator[BatchScores, None, None]:
    if (stream := streamed_layers(checkpoint.model)) is not None:
        if workers > 1:
            raise BadArgument(
                f"sweep(workers={workers}): a checkpoint opened with memory=... is read once for all ablations, by one "
                "process.\nLeave workers out, or open the checkpoint without memory=..."
            )
        yield from score_streamed(checkpoint, stream, ablations, left, scores, progress)
        return
    if workers > 1 and left:
        yield from score_in_workers(checkpoint, ablations, left, scores, workers)
        return
    for batch, missing in left:
        yield from score_batch(checkpoint, batch, ablations, missing, scores)


def _dataset(
    checkpoint: Checkpoint, ablations: Sequence[Ablation], tasks: Sequence[Task], table: ScoreTable
) -> xr.Dataset:
    """The scores of the texts that every ablation has read."""
    complete = np.flatnonzero(table.complete)
    variables: dict[str, Any] = {
        name: (("ablation", "text"), table.scores[name], {"units": units, "long_name": meaning})
        for name, (units, meaning) in SCORES.items()
        if name in table.scores
    }
    for name in BY_TEXT:
        units, meaning = SCORES[name]
        about = {"units": units, "long_name": f"{meaning}, intact model"}
        variables[f"clean_{name}"] = ("text", table.scores[f"clean_{name}"], about)
    coords = coordinates(ablations) | {"text": np.arange(len(table.complete))} | by_text(tasks)
    names = coords["task"][1]
    read = [tokens for task in tasks for tokens in task.tokens]
    facts = provenance_of(checkpoint, [read[i] for i in complete], [names[i] for i in complete])
    run, of = table.layers.tolist()
    return xr.Dataset(variables, coords, facts | {"layers_run": run / of}).isel(text=complete)
