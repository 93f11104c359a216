"""Query a store: its runs and their metrics as tables, and a dataset of all runs joined on its labels."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import xarray as xr

from qwenlab.arguments import choice
from qwenlab.errors import BadArgument, CannotCompare, UnknownRun
from qwenlab.experiments.store.catalogue import catalogue
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.store.store import FolderStore, Store
from qwenlab.experiments.store.table import STATES, of_experiment, runs_table, scalar

if TYPE_CHECKING:
    from qwenlab.experiments.plan.points import Plan

StoreLike = str | os.PathLike[str] | Store | None


def find(
    experiment: str | Plan | None = None,
    *,
    where: str | None = None,
    state: str | None = "finished",
    store: StoreLike = None,
) -> pd.DataFrame:
    """Find runs of a store: a table with one row per run, the oldest first.

    experiment  only runs of this experiment; for a Plan, only runs of its points, not those of an earlier spec
    where       only runs for which this SQL expression is true (DuckDB): `"params.checkpoint" = 'toy-moe' AND seed < 3`
    state       finished (each point at most once), running, broken_off, failed, interrupted; None for all

    Columns: `name` (experiment/address), `experiment`, `state`, `seed`, `began`, `seconds`, `peak_memory` (bytes),
    `commit`, `qwenlab` (its version), `source` (a hash of its code), `checkpoint_hash`, `exit`, `folder`;
    `params.NAME` of every parameter; `metrics.NAME (UNITS)` of every metric, the mean over its labels without NaN
    (`metrics` returns the single values).

    Raises BadArgument for an unknown state or an invalid expression, and UnknownRun for an experiment with no runs.
    """
    choice("find", "state", state, (*STATES, None))
    store = opened(store)
    table = runs_table(of_experiment(catalogue(store), experiment, store), store)
    if state is not None:
        table = table[table["state"] == state]
    empty = [name for name in table if len(table) and name.startswith("metrics.") and table[name].isna().all()]
    table = table.drop(columns=empty).sort_values(["began", "name"], kind="stable").reset_index(drop=True)
    return table if where is None else _where(table, where)


def metrics(
    experiment: str | Plan | None = None,
    metric: str | None = None,
    *,
    where: str | None = None,
    state: str | None = "finished",
    store: StoreLike = None,
) -> pd.DataFrame:
    """The recorded values of metrics: a table with one row per value.

    Columns: those of `find` that distinguish the runs, `name`, `seed` and the parameters that differ; then `metric`,
    one column per label, `value` and `units`. Other arguments are those of `find`.

    Raises UnknownRun for a metric that none of the runs recorded.
    """
    store = opened(store)
    runs = find(experiment, where=where, state=state, store=store)
    values = catalogue(store).metrics
    values = values[values["folder"].isin(runs["folder"])]
    if metric is not None:
        if metric not in set(values["metric"]):
            has = ", ".join(sorted(set(values["metric"]))) or "none"
            raise UnknownRun(f"None of these {len(runs)} runs recorded {metric!r}. Their metrics: {has}.")
        values = values[values["metric"] == metric]
    labels = pd.DataFrame([json.loads(text) for text in values["labels"]], index=values.index)
    tidy = pd.concat([values[["folder", "metric"]], labels, values[["value", "units"]]], axis="columns")
    return runs[["folder", "name", "seed", *_varied(runs)]].merge(tidy, on="folder").drop(columns="folder")


def datasets(
    name: str, experiment: str | Plan | None = None, *, where: str | None = None, store: StoreLike = None
) -> xr.Dataset:
    """Join one dataset of every finished run along a new dimension `run`, whose labels are the runs' names.

    Coordinates along `run` are the seed and the parameters that differ between runs.

    Raises CannotCompare if the runs have different labels in a dimension, UnknownRun if a run has no dataset of that
    name or no run matches, and BadArgument for an object store.
    """
    store = opened(store)
    if not isinstance(store, FolderStore):
        raise BadArgument(f"Datasets are read from a folder, not from {store.url}: copy the store here first.")
    runs = find(experiment, where=where, store=store)
    if runs.empty:
        raise UnknownRun(f"{store.url} has no such runs.")
    paths = [store.root / folder / "datasets" / f"{name}.nc" for folder in runs["folder"]]
    for path in paths:
        if not path.is_file():
            has = ", ".join(sorted(file.stem for file in path.parent.glob("*.nc"))) or "none"
            raise UnknownRun(f"The run {path.parent.parent} has no dataset {name!r}. Its datasets: {has}.")
    loaded = [xr.load_dataset(path, engine="h5netcdf") for path in paths]
    names = pd.Index(runs["name"].map(str).tolist(), name="run")
    try:
        joined = xr.concat(loaded, names, join="exact", combine_attrs="drop_conflicts")
    except ValueError as error:
        raise CannotCompare(f"The datasets {name!r} of the runs do not have the same labels: {error}") from error
    columns = [*_varied(runs), *(["seed"] if runs["seed"].nunique() > 1 else [])]
    return joined.assign_coords({column: ("run", [scalar(value) for value in runs[column]]) for column in columns})


def facts(name: str, *, store: StoreLike = None) -> dict[str, Any]:
    """The facts of one run, by its name or the beginning of its name; `folder` is its place in the store.

    Raises UnknownRun if no run has this name, or several begin with it.
    """
    row = run_row(name, store=store)
    return json.loads(row["facts"]) | {"folder": row["folder"]}


def run_row(name: str, *, store: StoreLike = None) -> pd.Series:
    """The catalogue row of one run; a finished run takes precedence over attempts."""
    store = opened(store)
    runs = catalogue(store).runs
    exact = runs[runs["folder"] == name]
    begins = runs["name"].str.startswith(name) | runs["name"].str.contains(f"/{name}", regex=False)
    matches = exact if len(exact) else runs[begins]
    finished = matches[matches["state"] == "finished"]
    matches = finished if len(finished) else matches
    if matches["name"].nunique() != 1:
        several = ", ".join(sorted(matches["folder"])[:5])
        problem = f"is the beginning of several names: {several}" if len(matches) else "is not the name of a run"
        raise UnknownRun(f"{name!r} {problem}, in the store {store.url}. `qwenlab runs list` prints the names.")
    return matches.iloc[-1]


def opened(store: StoreLike) -> Store:
    """Return a store unchanged, and open the store at an address."""
    return store_at(store) if store is None or isinstance(store, (str, os.PathLike)) else store


def _varied(runs: pd.DataFrame) -> list[str]:
    """The parameters that differ between runs; the seed has a column of its own."""
    names = [name for name in runs if name.startswith("params.") and name != "params.seed"]
    return [name for name in names if runs[name].astype(str).nunique() > 1]


def _where(table: pd.DataFrame, expression: str) -> pd.DataFrame:
    with duckdb.connect() as database:
        database.register("runs", table)
        try:
            return database.execute(f"SELECT * FROM runs WHERE {expression}").df()
        except duckdb.Error as error:
            columns = ", ".join(f'"{name}"' if "." in name or " " in name else name for name in table)
            first = str(error).splitlines()[0]
            raise BadArgument(f"where={expression!r}: {first}\nThe columns are: {columns}.") from error
