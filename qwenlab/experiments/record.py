"""`ql.experiments.record`: save what a notebook measured at once, outside the notebook, with labels and units."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import xarray as xr
from filelock import FileLock

from qwenlab.errors import BadMetric, RecordedTwice, UndeclaredMetric
from qwenlab.record.recording import Recording
from qwenlab.record.whole_files import replacing

RUN = "QWENLAB_RUN"
"""The environment variable with the folder of the run that is going on."""

METRICS = "metrics.parquet"
LOCK = ".metrics.lock"
"""Held while a row is added to the table. The runner removes it from the folder of a run that has ended."""

COLUMNS = ("metric", "labels", "value", "units")
_FILE = re.compile(r"[A-Za-z0-9_-]+")


def record(
    *,
    datasets: Mapping[str, xr.Dataset | xr.DataArray | Recording] | None = None,
    figures: Mapping[str, Any] | None = None,
    **metrics: Any,
) -> None:
    """Keep what this run has found so far, at once: what a later cell does cannot lose it.

    datasets  by name: a Dataset, DataArray or Recording, kept as datasets/NAME.nc; a later one replaces it
    figures   by name: matplotlib figures, kept as figures/NAME.png and .svg; a later one replaces it
    metrics   by the name that spec.yaml declares: a number, or a DataArray with the dimensions that the spec gives it;
              a value that could not be measured is NaN

    Threads and processes of the notebook may call it at the same time: all is on disk when each call returns. In a
    notebook that `qwenlab run` did not start the arguments are looked at and nothing is kept.

    Raises UndeclaredMetric, BadMetric and RecordedTwice. Files are replaced in one step, never written in place.
    """
    where = os.environ.get(RUN)
    folder = Path(where) if where else None
    declared = json.loads((folder / "facts.json").read_text())["metrics"] if folder else None
    rows = [row for name, value in metrics.items() for row in _rows(name, value, declared)]
    names = [*(datasets or {}), *(figures or {})]
    for name in names:
        if not _FILE.fullmatch(name):
            raise BadMetric(f"{name!r} cannot name a file: use letters, digits, dash and underscore.")
    if folder is None:
        return
    for name, dataset in (datasets or {}).items():
        _save_dataset(folder / "datasets" / f"{name}.nc", dataset)
    for name, figure in (figures or {}).items():
        _save_figure(folder / "figures", name, figure)
    if rows:
        _append(folder / METRICS, rows)


def _rows(name: str, value: Any, declared: Mapping[str, Any] | None) -> Iterator[tuple[str, str, float, str]]:
    """The rows of one metric: its labels as JSON, its value, its units."""
    known: Mapping[str, Any] = {"over": None, "units": ""}
    if declared is not None:
        if name not in declared:
            near = get_close_matches(name, declared, n=1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise UndeclaredMetric(
                f"{name!r} is not declared in spec.yaml. {meant}Declared: {', '.join(declared) or 'none'}."
            )
        known = declared[name]
    if isinstance(value, (xr.Dataset, pd.DataFrame, pd.Series, Recording)) or hasattr(value, "savefig"):
        raise BadMetric(
            f"{name!r} is a {type(value).__name__}; a metric is a number or a DataArray.\n"
            f"Keep it with record(datasets={{{name!r}: ...}}) or record(figures=...), and record what it shows."
        )
    values = value if isinstance(value, xr.DataArray) else xr.DataArray(value)
    if values.dtype.kind not in "buif":
        raise BadMetric(f"{name!r} must be made of numbers, not {values.dtype}: {value!r:.80}")
    over = known["over"]
    if over is not None and set(map(str, values.dims)) != set(over):
        dims = ", ".join(map(str, values.dims)) or "none"
        raise BadMetric(f"{name!r} has the dimensions {dims}; spec.yaml declares {', '.join(over) or 'none'}.")
    bare = [str(dim) for dim in values.dims if dim not in values.coords]
    if bare:
        raise BadMetric(f"{name!r} has no labels along {', '.join(bare)}: give the DataArray coordinates there.")
    if values.size == 0:
        raise BadMetric(f"{name!r} holds no value.")
    for index in np.ndindex(values.shape):
        labels = {str(dim): _plain(values[dim].values[at]) for dim, at in zip(values.dims, index, strict=True)}
        number = float(values.values[index])
        if math.isinf(number):
            raise BadMetric(f"{name!r} is infinite at {labels or 'its one value'}: record NaN for what has no value.")
        yield name, json.dumps(labels, sort_keys=True), number, known["units"]


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _append(path: Path, rows: list[tuple[str, str, float, str]]) -> None:
    """Add rows to the table, in one step, while no other thread or process does."""
    new = pd.DataFrame(rows, columns=list(COLUMNS))
    # A lock of its own for each call excludes threads too; the system releases that of a process that dies.
    with FileLock(path.with_name(LOCK)).acquire(poll_interval=0.01):
        both = pd.concat([read_metrics(path), new]) if path.exists() else new
        doubled = both[both.duplicated(["metric", "labels"])]
        if len(doubled):
            metric, labels = doubled.iloc[0][["metric", "labels"]]
            raise RecordedTwice(f"{metric!r} already has a value at {labels}. Record each value once.")
        write_table(both, path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write parquet, in one step."""
    with replacing(path) as beside, duckdb.connect() as database:
        database.from_df(table).write_parquet(str(beside))


def read_metrics(path: Path) -> pd.DataFrame:
    """The metrics of one run: metric, labels (JSON), value, units."""
    with duckdb.connect() as database:
        return database.execute("SELECT * FROM read_parquet(?)", [str(path)]).df()


def _save_dataset(path: Path, dataset: xr.Dataset | xr.DataArray | Recording) -> None:
    if isinstance(dataset, Recording):
        dataset.save(path)
        return
    if not isinstance(dataset, (xr.Dataset, xr.DataArray)):
        raise BadMetric(
            f"datasets[{path.stem!r}] is a {type(dataset).__name__}; keep a Dataset, a DataArray or a Recording."
        )
    with replacing(path) as beside:
        dataset.to_netcdf(beside, engine="h5netcdf")


def _save_figure(folder: Path, name: str, figure: Any) -> None:
    if not hasattr(figure, "savefig"):
        raise BadMetric(f"figures[{name!r}] is a {type(figure).__name__}; keep a matplotlib figure.")
    for suffix in ("png", "svg"):
        with replacing(folder / f"{name}.{suffix}") as beside:
            figure.savefig(beside, format=suffix, dpi=150)
