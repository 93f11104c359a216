"""Compute the cases in the process of one checkout, and write one file for each."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import typer

import qwenlab
from evidence.reference.cases import ablating, decoding, edits, experiment, made, recordings, tasks
from evidence.reference.compare import FAILED
from evidence.reference.names import Removed
from evidence.reference.results import Flat, flattened, save

ROOMS = (recordings, edits, decoding, ablating, tasks, made, experiment)


def main(checkout: str, folder: str, only: str = "") -> None:
    """Compute the cases whose name matches, with the qwenlab of this checkout."""
    used = Path(qwenlab.__file__).parents[1]
    if used != Path(checkout):
        raise SystemExit(f"qwenlab was imported from {used}, not from {checkout}: is PYTHONPATH set?")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    left_out = []
    for room in ROOMS:
        began, count = time.perf_counter(), 0
        for name, case in room.cases():
            if not re.search(only, name):
                continue
            try:
                save(computed(case), Path(folder, f"{name.replace('/', '+')}.pickle"))
                count += 1
            except Removed:
                left_out.append(name)
        typer.echo(f"{room.__name__.rpartition('.')[2]}: {count} cases, {time.perf_counter() - began:.0f} s")
    if left_out:
        typer.echo(f"left out, because they use removed names: {', '.join(left_out)}")


def computed(case: Callable[[], Any]) -> Flat:
    """The flat result of a case, or its traceback."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        return flattened(case())
    except Removed:
        raise
    except Exception:
        return {FAILED: traceback.format_exc(limit=-3)}
