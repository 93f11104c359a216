"""Tasks of lm-evaluation-harness, through its own Python API."""

from __future__ import annotations

import copy
import difflib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument, MissingExtra
from qwenlab.tasks.arguments import whole

_RESAMPLES = 1000  # for the standard error of metrics that are not means


def harness_scores(
    checkpoint: Checkpoint,
    tasks: Sequence[str],
    *,
    task_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> xr.Dataset:
    """Scores of the model on tasks of lm-evaluation-harness; in the `with` block of `intervene`, of the changed model.

    tasks        names of its tasks, groups or tags
    task_folder  a folder of task files (YAML) of your own, which is searched first; a task file can run code. The
                 harness's own tasks are listed, in half a minute, only if a name is not in it; most download a dataset
    limit        the number of documents of each task, from the first; by default all

    By `score`, with the coordinates task, metric, filter (applied by the harness to an answer before comparing) and
    better ("higher", "lower", or "" if unknown): value; stderr, NaN if the harness has none; samples (documents; NaN
    for a group); shots. The attributes hold the versions of the harness and of each task, and say where the scores come
    from, under the names of `Recording.attrs`; their texts are the requests that the harness made.

    The model, the tokenizer and the random number generators are restored. Raises MissingExtra without
    `pip install 'qwenlab[harness]'`, and BadArgument for a name that the harness does not know.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise BadArgument("harness_scores(checkpoint, tasks): give the name of at least one task.")
    whole("harness_scores", batch_size=batch_size, **({} if limit is None else {"limit": limit}))
    lm_eval, wrapper, manager_of = _harness()
    manager = _manager(manager_of, names, task_folder)
    with _restored(checkpoint.model):
        wrapped = wrapper(
            pretrained=checkpoint.model, tokenizer=copy.deepcopy(checkpoint.tokenizer), batch_size=batch_size
        )
        found = lm_eval.simple_evaluate(
            wrapped, tasks=names, task_manager=manager, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=True
        )
    requests = _requests(found["samples"])
    read = [checkpoint.tokenizer(text).input_ids for _, text in requests]
    facts = provenance_of(checkpoint, read, [task for task, _ in requests])
    return _dataset(found, str(lm_eval.__version__)).assign_attrs(facts)


def _requests(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Task and text of every request: a context, and the continuation that is scored after it."""
    return [
        (task, "".join(part for part in request if isinstance(part, str)))
        for task, documents in samples.items()
        for document in documents
        for request in document["arguments"]
    ]


def _harness() -> tuple[Any, Any, Any]:
    """lm_eval, its wrapper of transformers models, and its task manager."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra(
            f"harness_scores needs lm-evaluation-harness: {error}.\nRun: pip install 'qwenlab[harness]'"
        ) from error
    return lm_eval, HFLM, TaskManager


def _manager(manager_of: Any, names: list[str], folder: str | os.PathLike[str] | None) -> Any:
    """A task manager that knows all the names: of the folder alone if it has them."""
    if folder is not None:
        if not os.path.isdir(folder):
            raise BadArgument(f"harness_scores(task_folder={str(folder)!r}): there is no such folder.")
        own = manager_of(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = manager_of(include_path=None if folder is None else str(folder))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        raise BadArgument(
            f"lm-evaluation-harness has no task {unknown[0]!r}"
            + (f", nor has {str(folder)!r}." if folder is not None else ".")
            + (f"\nDid you mean {' or '.join(map(repr, near))}?" if near else "")
        )
    return manager


@contextmanager
def _restored(model: torch.nn.Module) -> Iterator[None]:
    """Restore which modules are in training mode, and the random number generators, which the harness seeds."""
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the harness seeds the global one
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for module, mode in modes.items():
            module.training = mode


def _dataset(found: Mapping[str, Any], version: str) -> xr.Dataset:
    rows = []
    for task, scores in found["results"].items():
        directions = found["higher_is_better"].get(task, {})
        samples = found["n-samples"].get(task, {}).get("effective", np.nan)
        counts = float(samples), float(found["n-shot"].get(task, np.nan))
        for key, value in scores.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = scores.get(f"{metric}_stderr,{chosen}")
            better = {True: "higher", False: "lower"}.get(directions.get(metric), "")
            rows.append((task, metric, chosen, better, _number(value), _number(error), *counts))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    about = {"task": "task", "metric": "metric", "filter": "filter", "better": "which values are better"}
    of = {
        "value": ("metric", "value of the metric"),
        "stderr": ("metric", "standard error"),
        "samples": ("document", "documents"),
        "shots": ("document", "examples before the question"),
    }
    coords = {name: ("score", columns[at], {"long_name": words}) for at, (name, words) in enumerate(about.items())}
    data = {
        name: ("score", columns[at + 4], {"units": units, "long_name": words})
        for at, (name, (units, words)) in enumerate(of.items())
    }
    versions = ", ".join(f"{task} {kind}" for task, kind in found["versions"].items())
    return xr.Dataset(data, coords, {"harness": version, "task_versions": versions})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) else float("nan")
