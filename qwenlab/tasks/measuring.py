"""A model's scores on tasks, one row a sequence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.tasks.arguments import whole
from qwenlab.tasks.grading import TaskBatch, asked_scores, check_tasks, grade, task_batches
from qwenlab.tasks.task import Task


@torch.no_grad()
def measure(checkpoint: Any, tasks: Sequence[Task], *, batch_size: int = 8, progress: bool = False) -> xr.Dataset:
    """Scores of every sequence of some tasks, in the tasks' order, along `text` with the coordinate `task`.

    loss           of the asked tokens, nat a token, mean
    accuracy       share of asked tokens that are the model's argmax
    bits_per_byte  loss of all asked tokens over their UTF-8 bytes, in bits; NaN for tasks that have no bytes
    asked          tokens asked for

    attrs["chance"] holds, as JSON, the chance of each task that has one. Inside an edit's `with` block the scores are
    the edited model's. Raises BadArgument.
    """
    check_tasks("measure", tasks)
    whole("measure", batch_size=batch_size)
    asked = np.array([len(positions) for task in tasks for positions in task.asked])
    sizes = np.array([size for task in tasks for size in task.bytes or [np.nan] * len(task.tokens)])
    loss, accuracy = np.full(len(asked), np.nan), np.full(len(asked), np.nan)
    for batch, logits in read(checkpoint, tasks, batch_size, progress):
        found = grade(batch, logits)
        loss[list(batch.texts)] = found["loss"].cpu().numpy()
        accuracy[list(batch.texts)] = found["accuracy"].cpu().numpy()
    bits = loss * asked / np.log(2) / np.where(sizes > 0, sizes, np.nan)
    chance = json.dumps({task.name: task.chance for task in tasks if task.chance is not None})
    names = [task.name for task in tasks for _ in task.tokens]
    return xr.Dataset(
        {
            "loss": ("text", loss, {"units": "nat/token", "long_name": "loss of the asked tokens"}),
            "accuracy": (
                "text",
                accuracy,
                {"units": "1", "long_name": "asked tokens given as first choice", "chance": chance},
            ),
            "bits_per_byte": ("text", bits, {"units": "bit/byte", "long_name": "bits per byte"}),
            "asked": ("text", asked, {"units": "token", "long_name": "tokens asked for"}),
        },
        {"task": ("text", names, {"long_name": "task"})},
        {"chance": chance},
    )


def token_losses(
    checkpoint: Any, tasks: Sequence[Task], batch_size: int, progress: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """The losses [asked] of one sequence after another, with its index, in the order of `task_batches`."""
    for batch, logits in read(checkpoint, tasks, batch_size, progress):
        rows, _, scores = asked_scores(batch, logits)
        loss = scores["loss"].cpu().numpy()
        for row, index in enumerate(batch.texts):
            yield index, loss[rows.cpu().numpy() == row]


def read(
    checkpoint: Any, tasks: Sequence[Task], batch_size: int, progress: bool
) -> Iterator[tuple[TaskBatch, torch.Tensor]]:
    """Batches with the model's logits."""
    total = sum(len(task.tokens) for task in tasks)
    found: Iterable[TaskBatch] = task_batches(checkpoint, tasks, batch_size=batch_size)
    for batch in tqdm(found, total=-(-total // batch_size), desc="measuring", unit="batch", disable=not progress):
        yield batch, checkpoint.model(**batch.inputs, use_cache=False).logits
