"""Finished runs sent to an MLflow tracking server, so that a team that has one sees the same numbers there."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from qwenlab.errors import ExportFailed
from qwenlab.experiments.record import METRICS
from qwenlab.experiments.store.catalogue import catalogue
from qwenlab.experiments.store.find import find
from qwenlab.experiments.store.location import StoreLike, store_at
from qwenlab.experiments.store.object_store import ObjectStore
from qwenlab.experiments.store.store import FACTS, FolderStore, Store, missing_extra
from qwenlab.experiments.sweep.attempt import LOG, NOTEBOOK

ADDRESS = "qwenlab.address"
"""The tag by which a run is known there."""

KEY, VALUE = 244, 6000
"""Characters of a name, to which `units.` may be added, and of a parameter's value. MLflow takes 250 and 6,000."""

_FILES = (NOTEBOOK, LOG, FACTS, METRICS)


def export_mlflow(
    experiment: str, *, tracking_uri: str, store: StoreLike = None, where: str | None = None, datasets: bool = False
) -> list[str]:
    """Send the finished runs of an experiment to an MLflow tracking server; the names of those that were new to it.

    tracking_uri  the server's: "http://HOST:5000", "sqlite:///FILE"
    where         only those for which this SQL holds, as in `find`
    datasets      send the datasets too; without it notebook, log, facts, table of metrics and figures

    A run whose address is there already is not sent again; what an export that broke off left of one is replaced, so
    let only one go on at a time. A labelled metric comes as `name/label.value`, one for each value. What MLflow cannot
    take is said on screen and in the run's tag `qwenlab.notes`: values that are NaN, parameters longer than 6,000
    characters, names with other characters than letters, digits, `_`, `-`, `.` and space.

    Raises UnknownRun and BadArgument as `find` does, MissingExtra, and ExportFailed.
    """
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise missing_extra("mlflow", "Sending runs to MLflow") from error
    kept = store_at(store)
    wanted = find(experiment, where=where, store=kept)["folder"]
    held, sent = catalogue(kept), []
    facts, metrics = held.runs.set_index("folder")["facts"], dict(list(held.metrics.groupby("folder")))
    try:
        client = MlflowClient(tracking_uri)
        there, known = _experiment(client, experiment)
        for folder in tqdm(wanted, desc=f"{experiment} to MLflow", unit="run"):
            run = json.loads(facts[folder])
            if run["address"] not in known:
                with _files(kept, folder, datasets) as files:
                    _send(client, there, run, metrics.get(folder, held.metrics[:0]), files)
                sent.append(f"{run['experiment']}/{run['address']}")
    except MlflowException as error:
        raise ExportFailed(
            f"MLflow at {_public(tracking_uri)} did not take {experiment!r}: {_public(str(error))}\n"
            f"{len(sent)} runs were sent. Mend what it names, and export again: those are not sent twice."
        ) from error
    return sent


def _public(text: str) -> str:
    """Text without the name and the password that an address may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _experiment(client: Any, name: str) -> tuple[str, set[str]]:
    """Its number there, and the addresses of the runs that are there whole. What is not whole is deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name)), set()
    known, page = set(), None
    while True:
        runs = client.search_runs([found.experiment_id], max_results=1000, page_token=page)
        for run in runs:
            address = run.data.tags.get(ADDRESS)
            if address is not None and run.info.status == "FINISHED":
                known.add(address)
            elif address is not None:
                client.delete_run(run.info.run_id)
        page = runs.token
        if not page:
            return str(found.experiment_id), known


def _send(
    client: Any, experiment: str, facts: Mapping[str, Any], metrics: pd.DataFrame, files: Mapping[str, Path]
) -> None:
    """Send one run, and what did not fit into MLflow; it is marked as finished once all of it is there."""
    from mlflow.entities import Metric, Param

    named, numbers, name = _Names(), metrics.dropna(subset="value"), f"{facts['experiment']}/{facts['address']}"
    written = {name: _written(value) for name, value in facts["parameters"].items()}
    units = metrics.drop_duplicates("metric")
    began, ended = (int(datetime.fromisoformat(facts[at]).timestamp() * 1000) for at in ("began", "ended"))
    params = [Param(named(name), _cut(value)) for name, value in written.items()]
    values = {named(row.metric, *_labels(row.labels)): float(row.value) for row in numbers.itertuples()}
    tags = {f"units.{named(name)}": unit for name, unit in zip(units["metric"], units["units"], strict=True)}
    notes = list(_notes(written, len(metrics) - len(numbers), len(metrics), named))
    tags |= {
        ADDRESS: facts["address"],
        "qwenlab.state": facts["state"],
        "qwenlab.seed": str(facts["seed"]),
        "qwenlab.commit": facts["code"].get("commit"),
        "qwenlab.source": facts["code"]["source"],
        "qwenlab.checkpoint_hash": ", ".join(each["hash"] for each in facts["checkpoints"].values()),
        "qwenlab.notes": "\n".join(notes),
    }
    tags = {tag: value for tag, value in tags.items() if value}
    run = client.create_run(experiment, start_time=began, tags=tags, run_name=name).info.run_id
    client.log_batch(run, [Metric(metric, value, ended, 0) for metric, value in values.items()], params)
    for file, path in files.items():
        client.log_artifact(run, str(path), file.rpartition("/")[0] or None)
    client.set_terminated(run, "FINISHED", end_time=ended)
    for note in notes:
        tqdm.write(f"{name}: {note}")


class _Names:
    """Names that MLflow allows. One that had to be changed ends in a hash of what it was, and so stays unique."""

    def __init__(self) -> None:
        self.changed: dict[str, str] = {}

    def __call__(self, *parts: str) -> str:
        whole = "/".join(parts)
        plain = "/".join(re.sub(r"^\.+|[^\w.\- ]", "_", part) or "_" for part in parts)
        if plain == whole and len(plain) <= KEY:
            return plain
        self.changed[whole] = f"{plain[: KEY - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        return self.changed[whole]


def _labels(labels: str) -> list[str]:
    return [f"{name}.{value}" for name, value in json.loads(labels).items()]


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _cut(value: str) -> str:
    mark = f" [cut: {len(value)} characters]"
    return value if len(value) <= VALUE else value[: VALUE - len(mark)] + mark


def _notes(written: Mapping[str, str], nan: int, total: int, named: _Names) -> Iterator[str]:
    """What MLflow does not have as the store has it."""
    if nan:
        yield f"NaN, and so left out: {nan} of {total} values; {METRICS} has them"
    if long := [name for name, value in written.items() if len(value) > VALUE]:
        yield f"cut to {VALUE} characters: {', '.join(long)[:VALUE]}; {FACTS} has it whole"
    if named.changed:
        old, new = next(iter(named.changed.items()))
        yield f"under other names, for MLflow's sake: {len(named.changed)}, such as {old[:KEY]!r} as {new!r}"


@contextmanager
def _files(store: Store, folder: str, datasets: bool) -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as here:
        root = store.root / folder if isinstance(store, FolderStore) else Path(here)
        if isinstance(store, ObjectStore):
            store.files.get(f"{store.root}/{folder}/", f"{here}/", recursive=True)
        wanted = {name: root / name for name in _FILES}
        for inner in ("figures", *(["datasets"] if datasets else [])):
            wanted |= {f"{inner}/{path.name}": path for path in sorted((root / inner).glob("[!.]*"))}
        yield {name: path for name, path in wanted.items() if path.is_file()}
