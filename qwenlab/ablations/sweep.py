"""`sweep`: many ablations on many tasks, each scored beside the unedited model on the same batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, coordinates
from qwenlab.ablations.prefix import given_back, outputs_of_layers
from qwenlab.ablations.resume import BY_TEXT, ScoreTable, key_of
from qwenlab.capture.active import active_interventions
from qwenlab.capture.provenance import provenance_of, running_on
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.errors import InterruptedWarning
from qwenlab.interventions.session import intervene
from qwenlab.tasks.grading import TaskBatch, check_tasks, grade, task_batches
from qwenlab.tasks.measuring import by_text
from qwenlab.tasks.task import Task

SCORES = {
    "loss": ("nat/token", "loss of the tokens asked for, mean over them"),
    "accuracy": ("1", "tokens asked for that are the first choice"),
    "kl": ("nat/token", "KL divergence of the unedited model's next-token distribution from the edited one's"),
    "agreement": ("1", "tokens asked for at which both models have the same first choice"),
}


@torch.no_grad()
def sweep(
    checkpoint: Checkpoint,
    ablations: Sequence[Ablation],
    tasks: Sequence[Task],
    *,
    batch_size: int = 8,
    keep: str | PathLike[str] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Scores of every ablation on every text of the tasks, and of the unedited model on the same.

    One forward pass of a batch serves all scores. The unedited model reads a batch first; of an ablation that changes
    nothing below some layer, the layers below are not run again. Inside an edit's `with` block "unedited" is what that
    block made of the model.

    ablations   from `units`, `controls` and `combined`; their names differ
    tasks       from `qwenlab.tasks`
    batch_size  sequences read at a time: logits of two models are held, [batch, asked positions, vocabulary], and what
                every layer returned
    keep        a file in which what is done is saved as it comes; where it is there already, the sweep goes on from it

    returns  loss, accuracy, kl, agreement [ablation, text], as `qwenlab.tasks.grade` defines them; clean_loss and
             clean_accuracy [text] of the unedited model; coordinates say of each ablation what it is, and of each text
             its task and its chance, NaN for plain text
    attrs    provenance; layers_run: layers run under ablations over those of as many whole forward passes

    Interrupted, it returns the texts that every ablation has read, with a warning. Raises BadArgument, and what the
    edits raise.
    """
    require_checkpoint(checkpoint)
    check_ablations("sweep(checkpoint, ablations, tasks)", ablations)
    check_tasks("sweep", tasks)
    batches = list(task_batches(checkpoint, tasks, batch_size=batch_size))
    done = _Sweep(checkpoint, ablations, tasks, keep)
    total = len(ablations) * sum(len(batch.texts) for batch in batches)
    with tqdm(total=total, unit="text", desc="ablating", disable=not progress) as bar:
        try:
            for batch in batches:
                for count in done.read(batch):
                    bar.update(count)
        except KeyboardInterrupt:
            if not done.whole.any():
                raise
            warnings.warn(
                f"The sweep was interrupted after {int(done.whole.sum())} of {len(done.whole)} texts; those are "
                "returned.",
                InterruptedWarning,
                stacklevel=3,
            )
        finally:
            done.kept.save()
    return done.dataset()


class _Sweep:
    """A sweep on its way: what is known of every ablation and text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ablations: Sequence[Ablation],
        tasks: Sequence[Task],
        keep: str | PathLike[str] | None,
    ) -> None:
        self.checkpoint, self.ablations, self.tasks = checkpoint, ablations, tasks
        self.decoder: Decoder = decoder_of(checkpoint.model)
        running = running_on(self.decoder)["dtype"], *active_interventions(self.decoder.module)
        key = key_of([checkpoint.hash_now(), *running], ablations, tasks)
        self.kept = ScoreTable(keep, key, len(ablations), sum(len(task.tokens) for task in tasks))

    @property
    def whole(self) -> np.ndarray:
        """bool [text]: read by every ablation."""
        return np.all(self.kept.done, axis=0)

    def read(self, batch: TaskBatch) -> Iterator[int]:
        """Score the batch's texts under every ablation that has not read them: yields how many texts that was."""
        texts = list(batch.texts)
        missing: list[int] = np.flatnonzero(~self.kept.done[:, texts].all(axis=1)).tolist()
        yield len(texts) * (len(self.ablations) - len(missing))
        if not missing:
            return
        with outputs_of_layers(self.decoder) as layers:
            clean = self._logits(batch)
        self.kept.put_clean(texts, grade(batch, clean))
        known: dict[str, dict[str, torch.Tensor]] = {}  # a control may be the same edits as a unit
        for index in missing:
            ablation, run = self.ablations[index], 0
            if ablation.edit not in known:
                with (
                    intervene(self.checkpoint.model, *ablation.edits) as editing,
                    given_back(self.decoder, editing, layers) as skipped,
                ):
                    logits = self._logits(batch)
                known[ablation.edit] = grade(batch, logits, clean)
                run = len(self.decoder.layers) - skipped
            self.kept.layers += (run, len(self.decoder.layers))
            self.kept.put(index, texts, known[ablation.edit])
            yield len(texts)

    def _logits(self, batch: TaskBatch) -> torch.Tensor:
        logits: torch.Tensor = self.checkpoint.model(**batch.inputs, use_cache=False).logits
        return logits

    def dataset(self) -> xr.Dataset:
        """What is known of the texts that every ablation has read."""
        scores, whole = self.kept.scores, np.flatnonzero(self.whole)
        variables: dict[str, Any] = {
            name: (("ablation", "text"), scores[name], {"units": units, "long_name": meaning})
            for name, (units, meaning) in SCORES.items()
        }
        for name in BY_TEXT:
            units, meaning = SCORES[name]
            about = {"units": units, "long_name": f"{meaning}, unedited model"}
            variables[f"clean_{name}"] = ("text", scores[f"clean_{name}"], about)
        coords = coordinates(self.ablations) | {"text": np.arange(len(self.whole))} | by_text(self.tasks)
        names = coords["task"][1]
        read = [tokens for task in self.tasks for tokens in task.tokens]
        facts = provenance_of(self.checkpoint, [read[i] for i in whole], [names[i] for i in whole])
        run, of = self.kept.layers.tolist()
        return xr.Dataset(variables, coords, facts | {"layers_run": run / of}).isel(text=whole)
