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

from qwenlab.errors import BadArgument, MissingExtra
from qwenlab.tasks.arguments import whole

_RESAMPLES = 1000  # for the standard error of metrics that are no means


def harness_scores(
    checkpoint: Any,
    tasks: Sequence[str],
    *,
    task_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> xr.Dataset:
    """What lm-evaluation-harness says of the model as it is: inside an edit's `with` block, of the edited one.

    tasks        names of its tasks, groups or tags
    task_folder  of task files (YAML) of your own, looked through first. A task file can run code; and the harness's own
                 tasks, of which most download a dataset, take it half a minute to list, so they are only where a name
                 is not found in the folder
    limit        documents of each task, the first ones; by default all

    By `score`, with the coordinates task, metric, filter (what the harness does to an answer before it is compared) and
    better ("higher", "lower", or "" where it does not say): value; stderr, NaN where it has none; samples (documents;
    NaN for a group); shots. attrs have the versions of the harness and of each task.

    The model, the tokenizer and the generators of random numbers are afterwards as they were before. Raises
    MissingExtra without `pip install 'qwenlab[harness]'`, and BadArgument for a name that the harness does not know.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise BadArgument("harness_scores(checkpoint, tasks): give the name of at least one task.")
    whole("harness_scores", batch_size=batch_size, **({} if limit is None else {"limit": limit}))
    lm_eval, wrapper, manager_of = _harness()
    manager = _manager(manager_of, names, task_folder)
    with _as_it_was(checkpoint.model):
        wrapped = wrapper(
            pretrained=checkpoint.model, tokenizer=copy.deepcopy(checkpoint.tokenizer), batch_size=batch_size
        )
        found = lm_eval.simple_evaluate(
            wrapped, tasks=names, task_manager=manager, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=False
        )
    return _dataset(found, str(lm_eval.__version__))


def _harness() -> tuple[Any, Any, Any]:
    """The package, its wrapper of transformers' models, and its manager of tasks."""
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
    """A manager that knows all the names: of the folder alone if that has them."""
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
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Put back what the harness changes: which modules are training, and the generators, which it seeds."""
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the global one is what is seeded
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for module, mode in modes.items():
            module.training = mode


def _dataset(found: Mapping[str, Any], version: str) -> xr.Dataset:
    """The harness's results, a row for each task, metric and filter."""
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
    """A metric as a float; NaN where the harness has none."""
    return float(value) if isinstance(value, int | float | np.number) else float("nan")
