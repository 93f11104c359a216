"""Spread the ablations of a sweep over processes, each with its own copy of the model."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.scoring import BatchScores, score_batch
from qwenlab.capture.active import active_interventions
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, WorkerDied
from qwenlab.tasks.grading import TaskBatch

_POLL_SECONDS, _PATIENCE_SECONDS = 1.0, 10.0
_JOBS_PER_WORKER = 2  # at least, so that no worker is idle for long at the end


@dataclass(frozen=True)
class Opening:
    """How a worker opens the checkpoint."""

    folder: str
    options: dict[str, Any]
    fingerprint: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Opening:
        """That of an open checkpoint. Raises BadArgument for one that its files do not describe, or on a GPU."""
        model, facts = checkpoint.model, checkpoint.facts
        why = ""
        if model.device.type != "cpu":
            why = f"the model is on {model.device}, and each worker needs a copy of its own"
        elif checkpoint.hash_now() != facts.hash:
            why = "the model in memory is no longer that of its files, which the workers open"
        elif active := active_interventions(decoder_of(model).module):
            why = f"{active[0]} is active, and would not be in the workers"
        if why:
            raise BadArgument(f"sweep(workers=...): {why}.\nGive workers=1.")
        config: Any = model.config
        options = dict(
            dtype=facts.dtype,
            attn_implementation=config._attn_implementation,
            experts_implementation=getattr(config, "_experts_implementation", None),
        )
        return cls(facts.folder, options, checkpoint.as_opened)


@dataclass(frozen=True)
class _Share:
    """A batch, and the indices of the ablations under which to score it."""

    batch: TaskBatch
    indices: tuple[int, ...]


def score_in_workers(
    checkpoint: Checkpoint,
    ablations: Sequence[Ablation],
    left: Sequence[tuple[TaskBatch, Sequence[int]]],
    names: Sequence[str],
    workers: int,
) -> Iterator[BatchScores]:
    """What `score_batch` yields for every batch and the ablations that it lacks, as processes compute it.

    Each process opens the checkpoint from its files and has its share of torch's threads. A worker's error is raised
    here, and WorkerDied if one ends without.
    """
    threads = max(1, torch.get_num_threads() // workers)
    setup = _pickled(Opening.of(checkpoint), tuple(ablations), tuple(names), threads)
    jobs = list(_jobs(ablations, left, workers))
    context = multiprocessing.get_context("spawn")
    waiting, results, stop = context.Queue(), context.Queue(), context.Event()
    running = [
        context.Process(target=_work, args=(setup, waiting, results, stop), name=f"sweep {n}", daemon=True)
        for n in range(min(workers, len(jobs)))
    ]
    for job in (*jobs, *[None] * len(running)):
        waiting.put(pickle.dumps(job))
    for process in running:
        process.start()
    try:
        unfinished = len(jobs)
        while unfinished:
            found = _next(results, running)
            if isinstance(found, BaseException):
                raise found
            if found is None:
                unfinished -= 1
            else:
                yield found
    finally:
        stop.set()
        waiting.cancel_join_thread()
        for process in running:
            process.join(_PATIENCE_SECONDS)
            process.terminate()


def _jobs(
    ablations: Sequence[Ablation], left: Sequence[tuple[TaskBatch, Sequence[int]]], workers: int
) -> Iterator[_Share]:
    """Whole batches if there are many, else parts of them; ablations with the same interventions stay together."""
    parts = -(-_JOBS_PER_WORKER * workers // max(1, len(left)))
    for batch, missing in left:
        same: dict[str, list[int]] = {}
        for index in sorted(missing, key=lambda index: ablations[index].lowest_layer):
            same.setdefault(ablations[index].intervention, []).append(index)
        groups, count = list(same.values()), min(parts, workers, len(same))
        for part in range(count):  # each part has ablations of low and of high layers
            yield _Share(batch, tuple(index for group in groups[part::count] for index in group))


def _pickled(*values: Any) -> bytes:
    """The values for a worker. Raises BadArgument for interventions that cannot be sent."""
    try:
        return pickle.dumps(values)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadArgument(
            f"sweep(workers=...): these ablations cannot be sent to another process ({error}).\nGive workers=1."
        ) from error


def _next(results: Any, running: Sequence[Any]) -> Any:
    """The next result. Raises WorkerDied if there is none and a worker has failed, or all have ended."""
    while True:
        codes = [process.exitcode for process in running]
        try:
            return pickle.loads(results.get(timeout=_POLL_SECONDS))
        except queue.Empty:
            if any(codes) or None not in codes:
                raise WorkerDied(
                    f"sweep(workers=...): a worker ended with code {next(filter(None, codes), 0)} before its ablations "
                    "were done.\nThe usual cause is memory: give fewer workers. In a script, call sweep under "
                    '`if __name__ == "__main__":`.'
                ) from None


def _work(setup: bytes, waiting: Any, results: Any, stop: Any) -> None:
    """What a worker does: one job after another, until there is none, or the sweep or its process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the sweep stops its workers itself
    parent: Any = multiprocessing.parent_process()
    try:
        opening, ablations, names, threads = pickle.loads(setup)
        torch.set_num_threads(threads)
        checkpoint = _opened(opening)
        while (job := pickle.loads(waiting.get())) is not None:
            for found in score_batch(checkpoint, job.batch, ablations, job.indices, names):
                if stop.is_set() or not parent.is_alive():
                    results.cancel_join_thread()
                    return
                results.put(pickle.dumps(found))
            results.put(pickle.dumps(None))
    except Exception as error:
        results.put(_sendable(error))


def _opened(opening: Opening) -> Checkpoint:
    from qwenlab.checkpoint.open import open

    checkpoint = open(opening.folder, **opening.options)
    if checkpoint.as_opened != opening.fingerprint:
        raise BadArgument(
            f"sweep(workers=...): the files in {opening.folder} have changed since the checkpoint was opened.\n"
            "Open it again, or give workers=1."
        )
    return checkpoint


def _sendable(error: Exception) -> bytes:
    """The error, or one with its text if it cannot be sent."""
    try:
        pickle.loads(sent := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return sent
