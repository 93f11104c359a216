"""What a store holds, as two tables: its runs and their metrics. Kept beside the runs, and brought up to date."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from qwenlab.experiments.record import METRICS, write_table
from qwenlab.experiments.store.object_store import ObjectStore
from qwenlab.experiments.store.store import FACTS, FolderStore, Store

INDEX = ".index"
"""Folder of the store with both tables. It may be deleted: it is made again from the runs."""

RUN_COLUMNS = ("folder", "stamp", "name", "experiment", "state", "seed", "began", "seconds", "facts")
METRIC_COLUMNS = ("folder", "metric", "labels", "value", "units")


@dataclass(frozen=True)
class Catalogue:
    """The runs of a store, finished or not, and their metrics.

    runs     a row a folder: `name` is experiment/address; `facts` its facts.json
    metrics  a row a value: `folder` says whose
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame


def catalogue(store: Store) -> Catalogue:
    """What the store holds now."""
    if isinstance(store, ObjectStore):
        with tempfile.TemporaryDirectory() as here:
            return _update(_empty(), _fetched(store, Path(here)))
    assert isinstance(store, FolderStore)
    known = _read(store.root / INDEX)
    fresh = _update(known, _found(store.root))
    if fresh is not known:
        with suppress(OSError):  # a store that may only be read is asked without being noted
            write_table(fresh.runs, store.root / INDEX / "runs.parquet")
            write_table(fresh.metrics, store.root / INDEX / "metrics.parquet")
    return fresh


RunStamps = dict[str, tuple[str, str]]
"""Folder of each run in the store -> a stamp that changes when its facts do, and where it can be read."""


def _found(root: Path) -> RunStamps:
    seen: RunStamps = {}
    for experiment in _folders(root):
        for run in _folders(experiment.path):
            with suppress(FileNotFoundError):
                stat = os.stat(f"{run.path}/{FACTS}")
                seen[f"{experiment.name}/{run.name}"] = (f"{stat.st_mtime_ns} {stat.st_ino}", run.path)
    return seen


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _fetched(store: ObjectStore, here: Path) -> RunStamps:
    """The tables of every run of an object store, brought here."""
    seen: RunStamps = {}
    for folder, facts in store.all_facts():
        name = "/".join(folder.split("/")[-2:])
        (here / name).mkdir(parents=True)
        (here / name / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        if store.files.exists(f"{folder}/{METRICS}"):
            store.files.get_file(f"{folder}/{METRICS}", str(here / name / METRICS))
        seen[name] = ("", str(here / name))
    return seen


def _empty() -> Catalogue:
    return Catalogue(pd.DataFrame(columns=list(RUN_COLUMNS)), pd.DataFrame(columns=list(METRIC_COLUMNS)))


def _read(index: Path) -> Catalogue:
    try:
        with duckdb.connect() as database:
            tables = [database.read_parquet(str(index / f"{name}.parquet")).df() for name in ("runs", "metrics")]
    except (duckdb.Error, OSError):  # none yet, or one that is no table any more
        return _empty()
    if [list(table.columns) for table in tables] != [list(RUN_COLUMNS), list(METRIC_COLUMNS)]:
        return _empty()
    return Catalogue(*tables)


def _update(known: Catalogue, seen: RunStamps) -> Catalogue:
    """The tables brought up to date: folders that are gone or have changed go, new ones come."""
    stamps = dict(zip(known.runs["folder"], known.runs["stamp"], strict=True))
    new = {folder: Path(path) for folder, (stamp, path) in seen.items() if stamps.get(folder) != stamp}
    if not new and stamps.keys() == seen.keys():
        return known
    stay = stamps.keys() & (seen.keys() - new.keys())
    rows = [row for folder, path in new.items() if (row := _row(folder, seen[folder][0], path)) is not None]
    runs = _joined(known.runs, stay, pd.DataFrame(rows, columns=list(RUN_COLUMNS)))
    metrics = _joined(known.metrics, stay, _metrics(new))
    return Catalogue(runs, metrics)


def _joined(old: pd.DataFrame, stay: Iterable[str], new: pd.DataFrame) -> pd.DataFrame:
    parts = [part for part in (old[old["folder"].isin(list(stay))], new) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else new


def _row(folder: str, stamp: str, path: Path) -> tuple[Any, ...] | None:
    """The row of one run; None where its facts are no facts: a folder that something else made, or half of one."""
    try:
        text = (path / FACTS).read_text(encoding="utf-8")
        facts = json.loads(text)
        name = f"{facts['experiment']}/{facts['address']}"
        seconds = float(facts.get("seconds") or "nan")
        return (folder, stamp, name, facts["experiment"], facts["state"], facts["seed"], facts["began"], seconds, text)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _metrics(folders: dict[str, Path]) -> pd.DataFrame:
    """The metrics of these folders, read in one go."""
    files = {str(path / METRICS): folder for folder, path in folders.items() if (path / METRICS).is_file()}
    if not files:
        return pd.DataFrame(columns=list(METRIC_COLUMNS))
    with duckdb.connect() as database:
        found = database.execute(
            "SELECT filename AS folder, metric, labels, value, units FROM read_parquet(?, filename=true)", [list(files)]
        ).df()
    return found.assign(folder=found["folder"].map(files))
