"""`ql.experiments.record`: save the metrics, datasets and figures of a run as soon as they are computed."""

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

from qwenlab.errors import BadMetric, DuplicateMetric, UndeclaredMetric
from qwenlab.record.recording import Recording
from qwenlab.record.whole_files import replacing

RUN = "QWENLAB_RUN"
"""The environment variable with the folder of the present run."""

METRICS = "metrics.parquet"
LOCK = ".metrics.lock"
"""The lock file for adding rows to the table. The runner deletes it after the run."""

COLUMNS = ("metric", "labels", "value", "units")
_FILE = re.compile(r"[A-Za-z0-9_-]+")


def record(
    *,
    datasets: Mapping[str, xr.Dataset | xr.DataArray | Recording] | None = None,
    figures: Mapping[str, Any] | None = None,
    **metrics: Any,
) -> None:
    """Save results of the present run. They are on disk when the call returns, so later cells cannot lose them.

    datasets  by name: a Dataset, DataArray or Recording, saved as datasets/NAME.nc; a later one replaces it
    figures   by name: matplotlib figures, saved as figures/NAME.png and .svg; a later one replaces it
    metrics   by the name that spec.yaml declares: a number, or a DataArray with the dimensions in the spec; NaN for a
              value that could not be measured

    Threads and processes of the notebook may call it at the same time. In a notebook that `qwenlab run` did not start,
    the arguments are checked and nothing is saved.

    Raises UndeclaredMetric, BadMetric and DuplicateMetric. Files are replaced atomically, never written in place.
    """
    folder = Path(os.environ[RUN]) if os.environ.get(RUN) else None
    declared = json.loads((folder / "facts.json").read_text())["metrics"] if folder else None
    rows = [row for name, value in metrics.items() for row in _rows(name, value, declared)]
    datasets, figures = datasets or {}, figures or {}
    for name in (*datasets, *figures):
        if not _FILE.fullmatch(name):
            raise BadMetric(f"{name!r} cannot be a file name: use letters, digits, dash and underscore.")
    if folder is None:
        return
    for name, dataset in datasets.items():
        _save_dataset(folder / "datasets" / f"{name}.nc", dataset)
    for name, figure in figures.items():
        _save_figure(folder / "figures", name, figure)
    if rows:
        _append(folder / METRICS, rows)


def _rows(name: str, value: Any, declared: Mapping[str, Any] | None) -> Iterator[tuple[str, str, float, str]]:
    """The rows of one metric: its name, labels as JSON, value, and units."""
    metric: Mapping[str, Any] = {"over": None, "units": ""}
    if declared is not None:
        if name not in declared:
            near = get_close_matches(name, declared, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UndeclaredMetric(
                f"{name!r} is not declared in spec.yaml. {hint}Declared: {', '.join(declared) or 'none'}."
            )
        metric = declared[name]
    if isinstance(value, (xr.Dataset, pd.DataFrame, pd.Series, Recording)) or hasattr(value, "savefig"):
        raise BadMetric(
            f"{name!r} is a {type(value).__name__}; a metric is a number or a DataArray.\n"
            f"Save it with record(datasets={{{name!r}: ...}}) or record(figures=...), and record a number from it."
        )
    values = value if isinstance(value, xr.DataArray) else xr.DataArray(value)
    if values.dtype.kind not in "buif":
        raise BadMetric(f"{name!r} must be a number or numbers, not {values.dtype}: {value!r:.80}")
    over = metric["over"]
    if over is not None and set(map(str, values.dims)) != set(over):
        dims = ", ".join(map(str, values.dims)) or "none"
        raise BadMetric(f"{name!r} has the dimensions {dims}; spec.yaml declares {', '.join(over) or 'none'}.")
    bare = [str(dim) for dim in values.dims if dim not in values.coords]
    if bare:
        raise BadMetric(f"{name!r} has no labels along {', '.join(bare)}: give the DataArray coordinates there.")
    if values.size == 0:
        raise BadMetric(f"{name!r} is empty: a metric needs at least one value.")
    for index in np.ndindex(values.shape):
        labels = {str(dim): _plain(values[dim].values[at]) for dim, at in zip(values.dims, index, strict=True)}
        number = float(values.values[index])
        if math.isinf(number):
            raise BadMetric(
                f"{name!r} is infinite at {labels or 'its only value'}: record NaN for what could not be measured."
            )
        yield name, json.dumps(labels, sort_keys=True), number, metric["units"]


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _append(path: Path, rows: list[tuple[str, str, float, str]]) -> None:
    """Add rows to the table, atomically, while no other thread or process does."""
    new = pd.DataFrame(rows, columns=list(COLUMNS))
    # A new lock object per call excludes threads too; the system releases the lock of a process that dies.
    with FileLock(path.with_name(LOCK)).acquire(poll_interval=0.01):
        both = pd.concat([read_metrics(path), new]) if path.exists() else new
        repeated = both[both.duplicated(["metric", "labels"])]
        if len(repeated):
            metric, labels = repeated.iloc[0][["metric", "labels"]]
            raise DuplicateMetric(f"{metric!r} already has a value at {labels}. Record each value once.")
        write_table(both, path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, atomically."""
    with replacing(path) as temporary, duckdb.connect() as database:
        database.from_df(table).write_parquet(str(temporary))


def read_metrics(path: Path) -> pd.DataFrame:
    """Read the metrics of one run: columns metric, labels (JSON), value, units."""
    with duckdb.connect() as database:
        return database.execute("SELECT * FROM read_parquet(?)", [str(path)]).df()


def _save_dataset(path: Path, dataset: xr.Dataset | xr.DataArray | Recording) -> None:
    if isinstance(dataset, Recording):
        dataset.save(path)
        return
    if not isinstance(dataset, (xr.Dataset, xr.DataArray)):
        raise BadMetric(
            f"datasets[{path.stem!r}] is a {type(dataset).__name__}; give a Dataset, a DataArray or a Recording."
        )
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def _save_figure(folder: Path, name: str, figure: Any) -> None:
    if not hasattr(figure, "savefig"):
        raise BadMetric(f"figures[{name!r}] is a {type(figure).__name__}; give a matplotlib figure.")
    for suffix in ("png", "svg"):
        with replacing(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=150)
