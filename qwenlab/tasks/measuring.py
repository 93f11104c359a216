"""Measure a model: scores by sequence of some tasks, and the loss of every token of some texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.capture.provenance import provenance_of
from qwenlab.capture.streamed_calls import run_streamed
from qwenlab.checkpoint.caches import cached_by
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.tasks.arguments import one_per_text, whole
from qwenlab.tasks.encoding import all_encoded, task_of
from qwenlab.tasks.grading import TaskBatch, asked_scores, check_tasks, grade, task_batches
from qwenlab.tasks.task import Task
from qwenlab.tasks.token_classes import CLASSES, classes_of

_BYTES = {"units": "B", "long_name": "UTF-8 bytes that the token adds"}


@torch.no_grad()
def measure(
    checkpoint: Checkpoint,
    tasks: Sequence[Task],
    *,
    block: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> xr.Dataset:
    """Scores of every sequence of some tasks, along `text`, in the order of the tasks.

    block  tokens read in one pass, on a cache: 1 as in decoding. By default a sequence is read at once, without a
           cache, and a checkpoint opened with `memory=` is read once for all sequences

    loss           mean loss of the asked tokens, nat/token
    accuracy       share of the asked tokens that are the model's argmax
    bits_per_byte  loss of all asked tokens over their UTF-8 bytes, in bits; NaN for tasks that have no bytes
    asked          number of asked tokens

    Coordinates: task, its name; chance, the accuracy of a guess, NaN for plain text. The attributes say where the
    scores come from, under the names of `Recording.attrs`. Inside `intervene` they are of the changed model.
    """
    check_tasks("measure", tasks)
    whole("measure", batch_size=batch_size, **({} if block is None else {"block": block}))
    sequences = [sequence for task in tasks for sequence in task.tokens]
    asked = np.array([len(positions) for task in tasks for positions in task.asked])
    sizes = np.array([size for task in tasks for size in task.bytes or [np.nan] * len(task.tokens)])
    loss, accuracy = np.full(len(asked), np.nan), np.full(len(asked), np.nan)
    for batch, logits in _logits(checkpoint, tasks, batch_size, progress, block):
        found = grade(batch, logits)
        loss[list(batch.texts)] = found["loss"].cpu().numpy()
        accuracy[list(batch.texts)] = found["accuracy"].cpu().numpy()
    bits = loss * asked / np.log(2) / np.where(sizes > 0, sizes, np.nan)
    coords = by_text(tasks)
    return xr.Dataset(
        {
            "loss": ("text", loss, {"units": "nat/token", "long_name": "loss of the asked tokens"}),
            "accuracy": ("text", accuracy, {"units": "1", "long_name": "asked tokens given as first choice"}),
            "bits_per_byte": ("text", bits, {"units": "bit/byte", "long_name": "bits per byte"}),
            "asked": ("text", asked, {"units": "token", "long_name": "tokens asked for"}),
        },
        coords,
        provenance_of(checkpoint, sequences, coords["task"][1]),
    )


def by_text(tasks: Sequence[Task]) -> dict[str, Any]:
    """The coordinates `task` and `chance` of every sequence of some tasks."""
    chance = [np.nan if task.chance is None else task.chance for task in tasks for _ in task.tokens]
    about = {"units": "1", "long_name": "accuracy of guessing among the possible answers"}
    return {
        "task": ("text", [task.name for task in tasks for _ in task.tokens], {"long_name": "task"}),
        "chance": ("text", np.array(chance), about),
    }


@torch.no_grad()
def losses(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    max_tokens: int | None = 512,
    n: int = 3,
    batch_size: int = 8,
    progress: bool = False,
) -> xr.Dataset:
    """The loss of every token but the first of each text, one row per token along `token`, text after text.

    labels  the domain of each text; by default ""
    n       length of the n-grams of the class `repeated`

    loss   -ln p(x[t] | x[..t-1]), nat/token;  id: x[t]
    bytes  UTF-8 bytes that x[t] adds to the text: those up to its end that no earlier token has
    repeated, first, associative, content, function
           bool: whether x[t] is in the class, as defined by `token_classes`

    Coordinates: text, its index; position, t; domain, its label. The attributes say where the losses come from, under
    the names of `Recording.attrs`. Pass the Dataset to `qwenlab.stats.losses`; there every further bool variable is one
    more class. Raises BadArgument, also for a text of fewer than two tokens.
    """
    whole("losses", batch_size=batch_size)
    found = all_encoded(checkpoint, texts, "losses", max_tokens)
    domains = one_per_text("losses", labels, len(found))
    classes = [classes_of(each, n) for each in found]
    by_text = [np.empty(0)] * len(found)
    for batch, logits in _logits(checkpoint, [task_of(found, "texts")], batch_size, progress):
        rows, _, scores = asked_scores(batch, logits)
        loss = scores["loss"].cpu().numpy()
        for row, index in enumerate(batch.texts):
            by_text[index] = loss[rows.cpu().numpy() == row]
    data: dict[str, Any] = {
        "loss": ("token", np.concatenate(by_text), {"units": "nat/token", "long_name": "next-token loss"}),
        "id": ("token", np.concatenate([each.tokens[1:] for each in found]), {"units": "id", "long_name": "token"}),
        "bytes": ("token", np.concatenate([each.bytes[1:] for each in found]), _BYTES),
    }
    for name, means in CLASSES.items():
        values = np.concatenate([each[name][1:] for each in classes])
        data[name] = ("token", values, {"units": "1", "long_name": f"{name}: {means}"})
    lengths = [len(each.tokens) - 1 for each in found]
    position = np.concatenate([np.arange(1, length + 1) for length in lengths])
    coords: dict[str, Any] = {
        "text": ("token", np.repeat(np.arange(len(found)), lengths), {"units": "1", "long_name": "number of the text"}),
        "position": ("token", position, {"units": "token", "long_name": "place in the text"}),
        "domain": ("token", np.repeat(np.array(domains), lengths), {"long_name": "domain"}),
    }
    facts = provenance_of(checkpoint, [each.tokens for each in found], domains)
    return xr.Dataset(data, coords, {"n": n, "texts": len(found)} | facts)


def _logits(
    checkpoint: Checkpoint, tasks: Sequence[Task], batch_size: int, progress: bool, block: int | None = None
) -> Iterator[tuple[TaskBatch, torch.Tensor]]:
    """Every batch with the model's logits at the positions that the batch needs."""
    model: Any = checkpoint.model
    total = -(-sum(len(task.tokens) for task in tasks) // batch_size)
    batches = task_batches(checkpoint, tasks, batch_size=batch_size)
    if block is None and (stream := streamed_layers(model)) is not None:
        known = list(batches)
        calls = [partial(_whole, model, batch) for batch in known]
        yield from zip(known, run_streamed(model, stream, calls, progress=progress), strict=True)
        return
    for batch in tqdm(batches, total=total, desc="measuring", unit="batch", disable=not progress):
        yield batch, _whole(model, batch) if block is None else _in_blocks(model, batch, block)


def _whole(model: Any, batch: TaskBatch) -> torch.Tensor:
    """The logits of a batch that is read in one pass."""
    logits: torch.Tensor = model(**batch.inputs, use_cache=False).logits
    return logits


def _in_blocks(model: Any, batch: TaskBatch, block: int) -> torch.Tensor:
    """The same logits, with `block` tokens read in one pass on a cache, up to the last position that is needed."""
    kept, found, cached = batch.kept, [], cached_by(model)
    for start in range(0, int(kept[-1]) + 1, block):
        stop = min(start + block, int(kept[-1]) + 1)
        inside = kept[(kept >= start) & (kept < stop)] - start
        tokens, mask = batch.input_ids[:, start:stop], batch.attention_mask[:, :stop]
        out = model(tokens, attention_mask=mask, use_cache=True, logits_to_keep=inside, **cached)
        found.append(out.logits)
    return torch.cat(found, dim=1)
