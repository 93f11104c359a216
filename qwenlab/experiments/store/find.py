"""Ask the store: runs as a table, their metrics as a table, their datasets joined on their labels."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import xarray as xr

from qwenlab.errors import BadArgument, CannotCompare, UnknownRun
from qwenlab.experiments.store.catalogue import catalogue
from qwenlab.experiments.store.store import FolderStore, Store, store_at
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
    """The runs of a store, one a row, the oldest first.

    experiment  only those of this one; of a Plan, only those of its points: none that an earlier spec had asked for
    where       only those for which this SQL expression holds (DuckDB): `"params.checkpoint" = 'toy-moe' AND seed < 3`
    state       finished (each point at most once), running, broken_off, failed, interrupted; None for all

    Columns: `name` (experiment/address), `experiment`, `state`, `seed`, `began`, `seconds`, `peak_memory` (bytes),
    `commit`, `qwenlab` (its version), `source` (a hash of its code), `checkpoint_hash`, `exit`, `folder`;
    `params.NAME` of every parameter; `metrics.NAME (UNITS)` of every metric, the mean over its labels and values that
    are not NaN: `metrics` has them one by one.

    Raises BadArgument for a state or an expression that cannot be, and UnknownRun for an experiment with no runs.
    """
    if state is not None and state not in STATES:
        raise BadArgument(f"state={state!r} is none that a run can be in: {', '.join(STATES)}, or None for all.")
    kept = opened(store)
    found = of_experiment(catalogue(kept), experiment, kept)
    table = runs_table(found, kept)
    if state is not None:
        table = table[table["state"] == state]
    empty = [name for name in table if len(table) and name.startswith("metrics.") and table[name].isna().all()]
    table = table.drop(columns=empty)
    table = table.sort_values(["began", "name"], kind="stable").reset_index(drop=True)
    return table if where is None else _where(table, where)


def metrics(
    experiment: str | Plan | None = None,
    metric: str | None = None,
    *,
    where: str | None = None,
    state: str | None = "finished",
    store: StoreLike = None,
) -> pd.DataFrame:
    """The values of metrics, one a row: `metric`, its labels a column each, `value`, `units`; and whose they are.

    The columns of `find` that tell the runs apart come first: `name`, `seed`, and the parameters that differ. Other
    arguments are those of `find`. Raises UnknownRun for a metric that none of the runs recorded.
    """
    kept = opened(store)
    runs = find(experiment, where=where, state=state, store=kept)
    found = catalogue(kept).metrics
    found = found[found["folder"].isin(runs["folder"])]
    if metric is not None:
        if metric not in set(found["metric"]):
            has = ", ".join(sorted(set(found["metric"]))) or "none"
            raise UnknownRun(f"None of these {len(runs)} runs recorded {metric!r}. Their metrics: {has}.")
        found = found[found["metric"] == metric]
    labels = pd.DataFrame([json.loads(each) for each in found["labels"]], index=found.index)
    varied = _varied(runs)
    whose = runs[["folder", "name", "seed", *varied]]
    tidy = pd.concat([found[["folder", "metric"]], labels, found[["value", "units"]]], axis="columns")
    return whose.merge(tidy, on="folder").drop(columns="folder")


def datasets(
    name: str, experiment: str | Plan | None = None, *, where: str | None = None, store: StoreLike = None
) -> xr.Dataset:
    """One dataset of every finished run, joined along a new dimension `run`, whose labels are the runs' names.

    The runs must have the same labels in every dimension: raises CannotCompare where they do not, and UnknownRun where
    a run has no dataset of that name. Coordinates along `run` say seed and parameters, where those differ.
    """
    kept = opened(store)
    if not isinstance(kept, FolderStore):
        raise BadArgument(f"Datasets are read from a folder, not from {kept.url}: copy the store here first.")
    runs = find(experiment, where=where, store=kept)
    if runs.empty:
        raise UnknownRun(f"{kept.url} has no such runs.")
    paths = [kept.root / folder / "datasets" / f"{name}.nc" for folder in runs["folder"]]
    for path in paths:
        if not path.is_file():
            has = ", ".join(sorted(each.stem for each in path.parent.glob("*.nc"))) or "none"
            raise UnknownRun(f"The run {path.parent.parent} has no dataset {name!r}. Its datasets: {has}.")
    loaded = [xr.load_dataset(path, engine="h5netcdf") for path in paths]
    names = pd.Index([str(each) for each in runs["name"]], name="run")
    try:
        joined = xr.concat(loaded, names, join="exact", combine_attrs="drop_conflicts")
    except ValueError as error:
        raise CannotCompare(f"The runs' {name!r} do not have the same labels: {error}") from error
    told = [*_varied(runs), *(["seed"] if runs["seed"].nunique() > 1 else [])]
    plain = {each: ("run", [scalar(value) for value in runs[each]]) for each in told}
    return joined.assign_coords(plain)


def facts(name: str, *, store: StoreLike = None) -> dict[str, Any]:
    """The facts of one run by its name, or as much of it as names one run; `folder` says where in the store it is.

    Raises UnknownRun.
    """
    row = run_row(name, store=store)
    return json.loads(row["facts"]) | {"folder": row["folder"]}


def run_row(name: str, *, store: StoreLike = None) -> pd.Series:
    """The row of the catalogue of one run: a finished one before an attempt."""
    kept = opened(store)
    runs = catalogue(kept).runs
    exact = runs[runs["folder"] == name]
    begins = runs["name"].str.startswith(name) | runs["name"].str.contains(f"/{name}", regex=False)
    found = exact if len(exact) else runs[begins]
    finished = found[found["state"] == "finished"]
    found = finished if len(finished) else found
    if found["name"].nunique() != 1:
        several = ", ".join(sorted(found["folder"])[:5])
        what = f"is the beginning of several: {several}" if len(found) else "is none of its runs"
        raise UnknownRun(f"{name!r} {what}, in the store {kept.url}. `qwenlab runs list` prints their names.")
    return found.iloc[-1]


def opened(store: StoreLike) -> Store:
    """The store itself, or the one at that address."""
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
