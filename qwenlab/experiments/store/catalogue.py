"""Two tables of a store, its runs and their metrics: cached in the store, and updated when runs change."""

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
"""Folder of the store with both tables. It may be deleted: it is rebuilt from the runs."""

COLUMNS = {
    "runs": ("folder", "stamp", "name", "experiment", "state", "seed", "began", "seconds", "facts"),
    "metrics": ("folder", "metric", "labels", "value", "units"),
}


@dataclass(frozen=True)
class Catalogue:
    """The runs of a store, finished or not, and their metrics."""

    runs: pd.DataFrame  # one row per run folder: `name` is experiment/address, `facts` the text of facts.json
    metrics: pd.DataFrame  # one row per value: `folder` is that of its run


_EMPTY = Catalogue(*(pd.DataFrame(columns=list(columns)) for columns in COLUMNS.values()))


def catalogue(store: Store) -> Catalogue:
    """The catalogue of a store as it is now."""
    if isinstance(store, ObjectStore):
        with tempfile.TemporaryDirectory() as folder:
            return _update(_EMPTY, _download(store, Path(folder)))
    assert isinstance(store, FolderStore)
    cached = _read(store.root / INDEX)
    current = _update(cached, _scan(store.root))
    if current is not cached:
        with suppress(OSError):  # a read-only store has no cache
            for name in COLUMNS:
                write_table(getattr(current, name), store.root / INDEX / f"{name}.parquet")
    return current


RunStamps = dict[str, tuple[str, str]]
"""Folder of each run in the store -> a stamp that changes when its facts change, and the path to read it from."""


def _scan(root: Path) -> RunStamps:
    stamps: RunStamps = {}
    for experiment in _folders(root):
        for run in _folders(experiment.path):
            with suppress(FileNotFoundError):
                stat = os.stat(f"{run.path}/{FACTS}")
                stamps[f"{experiment.name}/{run.name}"] = (f"{stat.st_mtime_ns} {stat.st_ino}", run.path)
    return stamps


def _folders(path: str | Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return []


def _download(store: ObjectStore, target: Path) -> RunStamps:
    """Download facts and metrics of every run of an object store."""
    stamps: RunStamps = {}
    for folder, facts in store.all_facts():
        name = "/".join(folder.split("/")[-2:])
        (target / name).mkdir(parents=True)
        (target / name / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        if store.files.exists(f"{folder}/{METRICS}"):
            store.files.get_file(f"{folder}/{METRICS}", str(target / name / METRICS))
        stamps[name] = ("", str(target / name))
    return stamps


def _read(index: Path) -> Catalogue:
    """The cached catalogue; an empty one if there is no cache, a damaged one, or one of another version."""
    with suppress(duckdb.Error, OSError), duckdb.connect() as database:
        tables = [database.read_parquet(str(index / f"{name}.parquet")).df() for name in COLUMNS]
        if [tuple(table.columns) for table in tables] == [*COLUMNS.values()]:
            return Catalogue(*tables)
    return _EMPTY


def _update(cached: Catalogue, stamps: RunStamps) -> Catalogue:
    """Drop the rows of folders that are gone or have changed, and add those of new and changed ones."""
    before = dict(zip(cached.runs["folder"], cached.runs["stamp"], strict=True))
    new = {folder: Path(path) for folder, (stamp, path) in stamps.items() if before.get(folder) != stamp}
    if not new and before.keys() == stamps.keys():
        return cached
    unchanged = before.keys() & (stamps.keys() - new.keys())
    rows = [row for folder, path in new.items() if (row := _row(folder, stamps[folder][0], path)) is not None]
    runs = _joined(cached.runs, unchanged, pd.DataFrame(rows, columns=list(COLUMNS["runs"])))
    return Catalogue(runs, _joined(cached.metrics, unchanged, _metrics(new)))


def _joined(old: pd.DataFrame, unchanged: Iterable[str], new: pd.DataFrame) -> pd.DataFrame:
    parts = [part for part in (old[old["folder"].isin(list(unchanged))], new) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else new


def _row(folder: str, stamp: str, path: Path) -> tuple[Any, ...] | None:
    """The row of one run; None if its facts cannot be read: a foreign folder, or a half-written file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        text = (path / FACTS).read_text(encoding="utf-8")
        facts = json.loads(text)
        name, seconds = f"{facts['experiment']}/{facts['address']}", float(facts.get("seconds") or "nan")
        return (folder, stamp, name, facts["experiment"], facts["state"], facts["seed"], facts["began"], seconds, text)
    return None


def _metrics(folders: dict[str, Path]) -> pd.DataFrame:
    files = {str(path / METRICS): folder for folder, path in folders.items() if (path / METRICS).is_file()}
    if not files:
        return _EMPTY.metrics
    with duckdb.connect() as database:
        values = database.execute(
            "SELECT filename AS folder, metric, labels, value, units FROM read_parquet(?, filename=true)", [list(files)]
        ).df()
    return values.assign(folder=values["folder"].map(files))
