"""`sweep`: score many ablations on many tasks, each against the intact model on the same batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, coordinates
from qwenlab.ablations.prefix import record_layer_outputs, reuse_outputs
from qwenlab.ablations.resume import BY_TEXT, ScoreTable, key_of
from qwenlab.capture.active import active_interventions
from qwenlab.capture.provenance import provenance_of, running_on
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.errors import InterruptedWarning
from qwenlab.interventions.session import intervene
from qwenlab.tasks.grading import TaskBatch, check_tasks, grade, task_batches
from qwenlab.tasks.measuring import by_text
from qwenlab.tasks.task import Task

SCORES = {
    "loss": ("nat/token", "loss of the tokens asked for, mean over them"),
    "accuracy": ("1", "tokens asked for that are the first choice"),
    "kl": ("nat/token", "KL divergence of the intact model's next-token distribution from the ablated one's"),
    "agreement": ("1", "tokens asked for at which both models have the same first choice"),
}


@torch.no_grad()
def sweep(
    checkpoint: Checkpoint,
    ablations: Sequence[Ablation],
    tasks: Sequence[Task],
    *,
    batch_size: int = 8,
    resume: str | PathLike[str] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Scores of every ablation on every text of the tasks, and of the intact model on the same texts.

    All scores of a batch come from one forward pass. The intact model reads a batch first; under an ablation, the
    layers below the lowest changed layer do not run again. Inside the block of other interventions, "intact" means
    the model under those.

    batch_size  sequences per batch: memory holds the logits of two models, [batch, asked positions, vocabulary], and
                the output of every layer
    resume      a file that stores the scores as they are computed; if it exists, the sweep resumes from it

    returns  loss, accuracy, kl, agreement [ablation, text], as `qwenlab.tasks.grade` defines them; clean_loss and
             clean_accuracy [text] of the intact model; chance [text], NaN for plain text; coordinates describe
             each ablation, and give the task of each text
    attrs    provenance; layers_run: layers run under ablations over those of as many whole forward passes

    When interrupted, it returns the texts that every ablation has read, with a warning. Raises BadArgument, and the
    errors of the interventions.
    """
    require_checkpoint(checkpoint)
    check_ablations("sweep(checkpoint, ablations, tasks)", ablations)
    check_tasks("sweep", tasks)
    batches = list(task_batches(checkpoint, tasks, batch_size=batch_size))
    decoder = decoder_of(checkpoint.model)
    running = running_on(decoder)["dtype"], *active_interventions(decoder.module)
    key = key_of([checkpoint.hash_now(), *running], ablations, tasks)
    table = ScoreTable(resume, key, len(ablations), sum(len(task.tokens) for task in tasks))
    state = _Sweep(checkpoint, ablations, tasks, decoder, table)
    total = len(ablations) * sum(len(batch.texts) for batch in batches)
    with tqdm(total=total, unit="text", desc="ablating", disable=not progress) as bar:
        try:
            for batch in batches:
                for count in state.read(batch):
                    bar.update(count)
        except KeyboardInterrupt:
            if not state.complete.any():
                raise
            warnings.warn(
                f"The sweep was interrupted after {int(state.complete.sum())} of {len(state.complete)} texts; "
                "it returns those.",
                InterruptedWarning,
                stacklevel=3,
            )
        finally:
            state.table.save()
    return state.dataset()


@dataclass(frozen=True)
class _Sweep:
    """A running sweep and its table of scores."""

    checkpoint: Checkpoint
    ablations: Sequence[Ablation]
    tasks: Sequence[Task]
    decoder: Decoder
    table: ScoreTable

    @property
    def complete(self) -> np.ndarray:
        """bool [text]: scored under every ablation."""
        return np.all(self.table.done, axis=0)

    def read(self, batch: TaskBatch) -> Iterator[int]:
        """Score a batch under every ablation that lacks its texts; yields the number of texts after each."""
        texts = list(batch.texts)
        missing: list[int] = np.flatnonzero(~self.table.done[:, texts].all(axis=1)).tolist()
        yield len(texts) * (len(self.ablations) - len(missing))
        if not missing:
            return
        with record_layer_outputs(self.decoder) as layers:
            clean = self._logits(batch)
        self.table.put_clean(texts, grade(batch, clean))
        graded: dict[str, dict[str, torch.Tensor]] = {}  # a control may have the same interventions as a unit
        for index in missing:
            ablation, run = self.ablations[index], 0
            if ablation.intervention not in graded:
                with (
                    intervene(self.checkpoint.model, *ablation.interventions) as session,
                    reuse_outputs(self.decoder, session, layers) as skipped,
                ):
                    logits = self._logits(batch)
                graded[ablation.intervention] = grade(batch, logits, clean)
                run = len(self.decoder.layers) - skipped
            self.table.layers += (run, len(self.decoder.layers))
            self.table.put(index, texts, graded[ablation.intervention])
            yield len(texts)

    def _logits(self, batch: TaskBatch) -> torch.Tensor:
        logits: torch.Tensor = self.checkpoint.model(**batch.inputs, use_cache=False).logits
        return logits

    def dataset(self) -> xr.Dataset:
        """The scores of the texts that every ablation has read."""
        scores, complete = self.table.scores, np.flatnonzero(self.complete)
        variables: dict[str, Any] = {
            name: (("ablation", "text"), scores[name], {"units": units, "long_name": meaning})
            for name, (units, meaning) in SCORES.items()
        }
        for name in BY_TEXT:
            units, meaning = SCORES[name]
            about = {"units": units, "long_name": f"{meaning}, intact model"}
            variables[f"clean_{name}"] = ("text", scores[f"clean_{name}"], about)
        coords = coordinates(self.ablations) | {"text": np.arange(len(self.complete))} | by_text(self.tasks)
        names = coords["task"][1]
        read = [tokens for task in self.tasks for tokens in task.tokens]
        facts = provenance_of(self.checkpoint, [read[i] for i in complete], [names[i] for i in complete])
        run, of = self.table.layers.tolist()
        return xr.Dataset(variables, coords, facts | {"layers_run": run / of}).isel(text=complete)
