"""Tasks as padded batches, and the scores of one batch from its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import named_differently, whole
from qwenlab.tasks.encoding import padded
from qwenlab.tasks.task import Task

_SLICE = 2**22  # logits that are looked at together, in float64
_CACHED = 2**17  # on a CPU, so that they stay in its cache: five times faster, and bit for bit the same
_KEPT = 2**25  # log-probabilities of a reference that are kept from one call to the next


@dataclass(frozen=True)
class TaskBatch:
    """Sequences of tasks, padded on the right.

    input_ids, attention_mask  int64 [batch, position]
    texts                      the index of each sequence among those of all tasks, in the order of the tasks
    asked                      bool [batch, position]: the tokens that are asked for
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    texts: tuple[int, ...]
    asked: torch.Tensor

    @property
    def kept(self) -> torch.Tensor:
        """Positions whose logits predict an asked token of any sequence of the batch: int [kept], ascending."""
        return self.asked[:, 1:].any(dim=0).nonzero()[:, 0]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a model's forward, which then computes logits at the positions `kept` only."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "logits_to_keep": self.kept}


def task_batches(checkpoint: Checkpoint, tasks: Sequence[Task], *, batch_size: int = 8) -> Iterator[TaskBatch]:
    """All sequences of the tasks, `batch_size` at a time, padded on the right, on the model's device.

    Sequences of similar length come together, whatever their task. The longest come first, so that a batch that does
    not fit into memory fails at once. Raises BadArgument for a list without tasks, two tasks of one name, or a token
    that is not in the model's embedding.
    """
    whole("task_batches", batch_size=batch_size)
    check_tasks("task_batches", tasks)
    sequences = [sequence for task in tasks for sequence in task.tokens]
    asked = [positions for task in tasks for positions in task.asked]
    require_checkpoint(checkpoint)
    embeddings: Any = checkpoint.model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    for task in tasks:
        least, most = min(map(min, task.tokens)), max(map(max, task.tokens))
        if least < 0 or most >= rows:
            raise BadArgument(
                f"Task {task.name!r} has tokens from {least} to {most}, and the model has rows 0 to {rows - 1}.\n"
                "Make it with this checkpoint's tokenizer."
            )
    device = checkpoint.model.device
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = padded([sequences[index] for index in chosen], device)
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        for row, index in enumerate(chosen):
            wanted[row, list(asked[index])] = True
        yield TaskBatch(ids, mask, tuple(chosen), wanted.to(device))


def check_tasks(where: str, tasks: Any) -> None:
    """Raise BadArgument unless `tasks` is a list of tasks with different names."""
    if isinstance(tasks, Task) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise BadArgument(f"{where}(checkpoint, tasks): give a list of at least one qwenlab.tasks.Task.")
    named_differently(where, "tasks", tasks)


class Reference:
    """The intact model's logits of a batch, and their log-probabilities, which several calls of `grade` use.

    logits  [batch, position, vocabulary], as in `grade`
    keep    whether to keep the distributions of the first asked tokens, in up to 512 MiB, for the next calls
    """

    def __init__(self, logits: torch.Tensor, *, keep: bool = True) -> None:
        self.logits = logits
        self._slices: dict[tuple[int, torch.device], _IntactDistribution] = {}
        self._left = _KEPT if keep else 0

    def distribution(
        self, number: int, row: torch.Tensor, at: torch.Tensor, device: torch.device
    ) -> _IntactDistribution:
        """The distributions of slice `number`, which are those at these rows and positions, on a device."""
        if (number, device) in self._slices:
            return self._slices[number, device]
        logits = self.logits[row.to(self.logits.device), at.to(self.logits.device)].to(device)
        made = _IntactDistribution(_logprob(logits))
        if self._left >= logits.numel():
            self._left -= logits.numel()
            self._slices[number, device] = made
        return made


class _IntactDistribution:
    """Next-token distributions: ln p and p [asked, vocabulary], the first choices, and where p is 0, if anywhere."""

    def __init__(self, logprob: torch.Tensor) -> None:
        self.logprob, self.p, self.first = logprob, logprob.exp(), logprob.argmax(dim=-1)
        impossible = logprob == -torch.inf
        self.impossible = impossible if impossible.any() else None

    def kl(self, logprob: torch.Tensor) -> torch.Tensor:
        """The KL divergence of each distribution from another one, whose logarithms are overwritten."""
        terms = torch.sub(self.logprob, logprob, out=logprob).mul_(self.p)
        if self.impossible is not None:  # p ln(p / q) is 0 there
            terms.masked_fill_(self.impossible, 0)
        return terms.sum(dim=-1)


@torch.no_grad()
def grade(
    batch: TaskBatch, logits: torch.Tensor, reference: torch.Tensor | Reference | None = None
) -> dict[str, torch.Tensor]:
    """Scores of each sequence of a batch: means over its asked tokens, [batch] each.

    logits     [batch, position, vocabulary] of the model: at all positions, or at `batch.kept` only
    reference  logits of the intact model, of the same shape

    loss       -ln p(x[t] | x[..t-1]), nat/token
    accuracy   whether x[t] is the argmax over the whole vocabulary
    kl         KL(reference || logits): sum over the vocabulary of p ln(p / q), nat/token; only with a reference
    agreement  whether both have the same argmax; only with a reference

    Scores are float64, or float32 on a device without float64, and NaN where the logits are. A few rows of logits are
    read at a time, so that memory hardly grows with the vocabulary. Raises BadArgument for other shapes.
    """
    rows, _, scores = asked_scores(batch, logits, reference)
    number = len(batch.texts)
    count = torch.bincount(rows, minlength=number)
    return {
        name: torch.zeros(number, device=rows.device, dtype=each.dtype).index_add_(0, rows, each) / count
        for name, each in scores.items()
    }


def asked_scores(
    batch: TaskBatch, logits: torch.Tensor, reference: torch.Tensor | Reference | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The values that `grade` averages: row and position of each asked token of the batch, and its scores, [asked]."""
    place = _places(batch, logits)
    intact = Reference(reference, keep=False) if isinstance(reference, torch.Tensor) else reference
    if intact is not None and intact.logits.shape != logits.shape:
        raise BadArgument(
            f"grade: reference is {list(intact.logits.shape)} and logits are {list(logits.shape)}.\n"
            "Give those of the same batch, from the intact model."
        )
    rows, positions = (each.to(logits.device) for each in batch.asked.nonzero(as_tuple=True))
    tokens = batch.input_ids.to(logits.device)[rows, positions]
    step = _step(logits)
    found: list[dict[str, torch.Tensor]] = []
    slices = zip(rows.split(step), place[positions].split(step), tokens.split(step), strict=True)
    for number, (row, at, token) in enumerate(slices):
        logprob = _logprob(logits[row, at])
        loss, first = -logprob.gather(1, token[:, None])[:, 0], logprob.argmax(dim=-1)
        found.append({"loss": loss, "accuracy": (first == token).to(loss.dtype).masked_fill(loss.isnan(), torch.nan)})
        if intact is not None:
            before = intact.distribution(number, row, at, logits.device)
            kl = before.kl(logprob)
            same = (first == before.first).to(loss.dtype).masked_fill(kl.isnan(), torch.nan)
            found[-1] |= {"kl": kl.clamp_min(0), "agreement": same}  # kl is below 0 by rounding only
    return rows, positions, {name: torch.cat([each[name] for each in found]) for name in found[0]}


def _step(logits: torch.Tensor) -> int:
    """Rows of logits to look at together."""
    vocabulary = logits.shape[-1]
    most = max(1, _SLICE // vocabulary)
    # With fewer rows than threads, torch would add up a row in several parts, and round otherwise.
    return min(most, max(64, _CACHED // vocabulary)) if logits.device.type == "cpu" else most


def _logprob(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).log_softmax(dim=-1)


def _places(batch: TaskBatch, logits: torch.Tensor) -> torch.Tensor:
    """The index along the logits' positions that predicts the token at each position: int [position]."""
    texts, width = batch.input_ids.shape
    kept = batch.kept.to(logits.device)
    position = torch.arange(width, device=logits.device)
    if logits.ndim == 3 and logits.shape[0] == texts:
        if logits.shape[1] == width:
            return position - 1
        if logits.shape[1] == len(kept):
            return torch.searchsorted(kept, position - 1)
    raise BadArgument(
        f"grade: logits are {list(logits.shape)}; this batch has {texts} sequences of {width} positions.\n"
        f"Give [{texts}, {width}, vocabulary], or the [{texts}, {len(kept)}, vocabulary] of model(**batch.inputs)."
    )
