"""The runs of a catalogue as one table, with a column per fact, parameter and metric."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenlab.errors import UnknownRun
from qwenlab.experiments.store.catalogue import Catalogue
from qwenlab.experiments.store.store import FolderStore, Store

if TYPE_CHECKING:
    from qwenlab.experiments.plan.points import Plan

UNFINISHED = ("running", "broken_off", "failed", "interrupted")
STATES = ("finished", *UNFINISHED)
"""`broken_off`: its runner died before it recorded how the run ended."""


def of_experiment(catalogue: Catalogue, experiment: str | Plan | None, store: Store) -> Catalogue:
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


def runs_table(catalogue: Catalogue, store: Store) -> pd.DataFrame:
    """One row per run; for the columns see `find`. `state` is the present one."""
    rows = []
    for row in catalogue.runs.itertuples():
        facts = json.loads(row.facts)
        rows.append(
            {
                "name": row.name,
                "experiment": row.experiment,
                "state": _state(row, store),
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
        )
    base = ["name", "experiment", "state", "seed", "began", "seconds", "folder"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=base)
    if len(catalogue.metrics):
        metrics = catalogue.metrics.assign(column=lambda rows: "metrics." + rows["metric"] + " (" + rows["units"] + ")")
        means = metrics.groupby(["folder", "column"])["value"].mean().unstack()
        table = table.merge(means, left_on="folder", right_index=True, how="left")
    return table


def _state(row: Any, store: Store) -> str:
    """The present state: a run that is recorded as running but that no runner has claimed broke off."""
    if row.state != "running":
        return str(row.state)
    is_claimed = isinstance(store, FolderStore) and store.is_claimed(row.name)
    return "running" if is_claimed else "broken_off"


def scalar(value: Any) -> Any:
    """A parameter as a table cell: lists and dicts become JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value
