"""The runs of a catalogue as one table: every fact, parameter and metric a column."""

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
"""`broken_off`: its runner died and could not say how it ended."""


def of_experiment(found: Catalogue, experiment: str | Plan | None, store: Store) -> Catalogue:
    """The runs of one experiment, or of the points of a plan. Raises UnknownRun where it has none."""
    if experiment is None:
        return found
    name = experiment if isinstance(experiment, str) else experiment.experiment
    runs = found.runs[found.runs["experiment"] == name]
    if runs.empty:
        has = ", ".join(sorted(set(found.runs["experiment"]))) or "no runs"
        raise UnknownRun(f"{store.url} has no runs of {name!r}. It has: {has}.")
    if not isinstance(experiment, str):
        runs = runs[runs["name"].isin([point.name for point in experiment.points])]
    return Catalogue(runs, found.metrics[found.metrics["folder"].isin(runs["folder"])])


def runs_table(found: Catalogue, store: Store) -> pd.DataFrame:
    """The runs with everything a column, their states as they are now."""
    rows = []
    for row in found.runs.itertuples():
        known = json.loads(row.facts)
        hashes = [each["hash"] for each in known["checkpoints"].values()]
        rows.append(
            {
                "name": row.name,
                "experiment": row.experiment,
                "state": _state(row, store),
                "seed": row.seed,
                "began": row.began,
                "seconds": row.seconds,
                "peak_memory": known.get("used", {}).get("peak_memory"),
                "commit": known["code"].get("commit"),
                "qwenlab": known["code"]["qwenlab"],
                "source": known["code"]["source"],
                "checkpoint_hash": ", ".join(hashes),
                "exit": known.get("exit", {}).get("kind"),
                "folder": row.folder,
                **{f"params.{name}": scalar(value) for name, value in known["parameters"].items()},
            }
        )
    base = ["name", "experiment", "state", "seed", "began", "seconds", "folder"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=base)
    if len(found.metrics):
        named = found.metrics["metric"] + " (" + found.metrics["units"] + ")"
        means = found.metrics.assign(column="metrics." + named).groupby(["folder", "column"])["value"].mean().unstack()
        table = table.merge(means, left_on="folder", right_index=True, how="left")
    return table


def _state(row: Any, store: Store) -> str:
    """A run that says it is running, and that no runner holds, broke off."""
    if row.state != "running":
        return str(row.state)
    held = isinstance(store, FolderStore) and store.is_claimed(row.name)
    return "running" if held else "broken_off"


def scalar(value: Any) -> Any:
    """A parameter as a table can hold it."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value
