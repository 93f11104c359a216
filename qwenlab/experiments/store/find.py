"""Query a store: its runs and their metrics as tables, and a dataset of all runs joined on its labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import xarray as xr

from qwenlab.arguments import choice
from qwenlab.errors import BadArgument, CannotCompare, UnknownRun
from qwenlab.experiments.store.catalogue import Catalogue, catalogue
from qwenlab.experiments.store.location import StoreLike, store_at
from qwenlab.experiments.store.store import FolderStore, Store

if TYPE_CHECKING:
    from qwenlab.experiments.plan.points import Plan

UNFINISHED = ("running", "broken_off", "failed", "interrupted")
STATES = ("finished", *UNFINISHED)
"""`broken_off`: its runner died before it recorded how the run ended."""


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
    store = store_at(store)
    table = _runs_table(_of_experiment(catalogue(store), experiment, store), store)
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
    store = store_at(store)
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
    store = store_at(store)
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
    columns = [*_varied(runs), *["seed"] * (runs["seed"].nunique() > 1)]
    return joined.assign_coords({column: ("run", [scalar(value) for value in runs[column]]) for column in columns})


def facts(name: str, *, store: StoreLike = None) -> dict[str, Any]:
    """The facts of one run, by its name or the beginning of its name; `folder` is its place in the store.

    Raises UnknownRun if no run has this name, or several begin with it.
    """
    store = store_at(store)
    row = run_row(name, catalogue(store).runs, store.url)
    return json.loads(row["facts"]) | {"folder": row["folder"]}


def run_row(name: str, runs: pd.DataFrame, url: str) -> pd.Series:
    """The row of one run in the catalogue of the store at `url`; a finished run takes precedence over attempts."""
    exact = runs[runs["folder"] == name]
    begins = runs["name"].str.startswith(name) | runs["name"].str.contains(f"/{name}", regex=False)
    matches = exact if len(exact) else runs[begins]
    finished = matches[matches["state"] == "finished"]
    matches = finished if len(finished) else matches
    if matches["name"].nunique() != 1:
        several = ", ".join(sorted(matches["folder"])[:5])
        problem = f"is the beginning of several names: {several}" if len(matches) else "is not the name of a run"
        raise UnknownRun(f"{name!r} {problem}, in the store {url}. `qwenlab runs list` prints the names.")
    return matches.iloc[-1]


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


def _of_experiment(catalogue: Catalogue, experiment: str | Plan | None, store: Store) -> Catalogue:
    """Select the runs of an experiment, or of the points of a plan. Raises UnknownRun if the experiment has none."""
    if experiment is None:
        return catalogue
    name = experiment if isinstance(experiment, str) else experiment.experiment
    runs = catalogue.runs[catalogue.runs["experiment"] == name]
    if runs.empty:
        has = ", ".join(sorted(set(catalogue.runs["experiment"]))) or "no runs"
        raise UnknownRun(f"{store.url} has no runs of {name!r}. It has: {has}.")
    if not isinstance(experiment, str):
        runs = runs[runs["name"].isin([point.name for point in experiment.points])]
    return Catalogue(runs, catalogue.metrics[catalogue.metrics["folder"].isin(runs["folder"])])


def _runs_table(catalogue: Catalogue, store: Store) -> pd.DataFrame:
    """One row per run; for the columns see `find`. `state` is the present one."""
    rows = [_row(row, store) for row in catalogue.runs.itertuples()]
    base = ["name", "experiment", "state", "seed", "began", "seconds", "folder"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=base)
    if len(catalogue.metrics):
        metrics = catalogue.metrics.assign(column=lambda rows: "metrics." + rows["metric"] + " (" + rows["units"] + ")")
        means = metrics.groupby(["folder", "column"])["value"].mean().unstack()
        table = table.merge(means, left_on="folder", right_index=True, how="left")
    return table


def _row(row: Any, store: Store) -> dict[str, Any]:
    facts, state = json.loads(row.facts), row.state
    if state == "running" and not (isinstance(store, FolderStore) and store.is_claimed(row.name)):
        state = "broken_off"
    return {
        "name": row.name,
        "experiment": row.experiment,
        "state": state,
        "seed": row.seed,
        "began": row.began,
        "seconds": row.seconds,
        "peak_memory": facts.get("used", {}).get("peak_memory"),
        "commit": facts["code"].get("commit"),
        "qwenlab": facts["code"]["qwenlab"],
        "source": facts["code"]["source"],
        "checkpoint_hash": ", ".join(checkpoint["hash"] for checkpoint in facts["checkpoints"].values()),
        "exit": facts.get("exit", {}).get("kind"),
        "folder": row.folder,
        **{f"params.{name}": scalar(value) for name, value in facts["parameters"].items()},
    }


def scalar(value: Any) -> Any:
    """A parameter as a table cell: lists and dicts become JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested facts, each with its full name: `machine.memory`."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
