"""One self-contained HTML page of an experiment: its question, runs, metrics, figures and facts."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qwenlab import __version__
from qwenlab.errors import BadArgument
from qwenlab.experiments.store.catalogue import catalogue
from qwenlab.experiments.store.find import UNFINISHED, find, flat
from qwenlab.experiments.store.location import StoreLike, store_at
from qwenlab.experiments.store.store import FACTS, FolderStore
from qwenlab.experiments.sweep.attempt import LOG, NOTEBOOK
from qwenlab.experiments.sweep.provenance import now
from qwenlab.record.whole_files import replacing

PAGE, TEMPLATE = "report.html", "page.html.j2"

FIGURES, FIGURE_BYTES = 24, 16 * 2**20
"""Figures that a page holds, and the bytes of all of them."""

LABELS, SETTINGS = 40, 8
"""Rows and columns that a table of a metric by label holds."""

_ALIKE = ("notebook", "parameters", "checkpoints", "code", "versions", "machine")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class _Run:
    """A run or an attempt: its row of `find`, what sets it `apart` from other finished ones, and links to its files."""

    def __init__(
        self, row: Mapping[str, Any], facts: Mapping[str, Any], root: Path, apart: Mapping[str, str], page: Path
    ) -> None:
        folder = root / row["folder"]
        self.row, self.facts, self.folder, self.apart, self.name = row, facts, folder, apart, folder.name
        self.setting = ", ".join(f"{name}={value}" for name, value in apart.items())
        ended, state = facts.get("exit") or {}, row["state"]
        self.kind = ended.get("kind", state.replace("_", " "))
        lost = "" if state == "running" else "its runner died and could not say how it ended"
        self.reason = ended.get("message", lost)
        self.links = {
            word: quote(Path(os.path.relpath(folder / name, page.parent)).as_posix())
            for word, name in {"notebook": NOTEBOOK, "log": LOG, "facts": FACTS}.items()
            if (folder / name).is_file()
        }


def report(experiment: str, out: str | Path | None = None, *, store: StoreLike = None) -> Path:
    """Write one HTML page of an experiment that needs no other file, and return its path.

    out  the page; by default report.html in the experiment's folder of the store

    Its links to notebooks, logs and facts are relative: they hold for as long as page and store are moved together.
    Raises UnknownRun for an experiment with no runs, and BadArgument for a store that is not a folder.
    """
    kept = store_at(store)
    if not isinstance(kept, FolderStore):
        raise BadArgument(f"A report is made from a folder, not from {kept.url}: copy the store here first.")
    table = find(experiment, state=None, store=kept)
    page = (kept.root / experiment / PAGE) if out is None else Path(out).resolve()
    if page.is_dir():
        raise BadArgument(f"{page} is a folder: name the page to write, such as {page / PAGE}.")
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    ).get_template(TEMPLATE)
    text = template.render(experiment=experiment, made=now(), version=__version__, **_told(table, kept, page))
    with replacing(page) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))
    return page


def _told(table: pd.DataFrame, store: FolderStore, page: Path) -> dict[str, Any]:
    known = catalogue(store)
    facts = {row.folder: json.loads(row.facts) for row in known.runs.itertuples()}
    rows = [row for row in table.to_dict("records") if row["folder"] in facts]
    done = [row for row in rows if row["state"] == "finished"]
    apart = dict(zip((row["folder"] for row in done), _apart(done, facts), strict=True))
    runs = [_Run(row, facts[row["folder"]], store.root, apart.get(row["folder"], {}), page) for row in rows]
    finished = [run for run in runs if run.row["state"] == "finished"]
    shown, left_out = _figures(finished)
    return {
        "question": runs[-1].facts["question"],
        "counts": {state: sum(run.row["state"] == state for run in runs) for state in ("finished", *UNFINISHED)},
        "apart": list(next(iter(apart.values()), {})),
        "means": [name for name in table if name.startswith("metrics.") and table[name].notna().any()],
        "declared": {name: metric for run in finished for name, metric in run.facts["metrics"].items()},
        "finished": finished,
        "unfinished": [run for run in runs if run.row["state"] != "finished"],
        "finished_names": {run.row["name"] for run in finished},
        "labelled": list(_labelled(known.metrics, finished)),
        "figures": shown,
        "figures_left_out": left_out,
        "facts": _facts(finished or runs),
    }


def _apart(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """What sets each run apart: parameters, and code or checkpoints where those differ under the same parameters."""
    found = [dict(facts[row["folder"]]["parameters"]) for row in rows]
    for each in found:
        each.pop("seed", None)
    keys = [json.dumps(each, sort_keys=True) for each in found]
    for column in ("checkpoint_hash", "qwenlab", "source"):
        if len({(key, row[column]) for key, row in zip(keys, rows, strict=True)}) > len(set(keys)):
            found = [each | {column.replace("_", " "): row[column]} for each, row in zip(found, rows, strict=True)]
    names = dict.fromkeys(name for each in found for name in each)
    varied = [name for name in names if len({_text(each.get(name)) for each in found}) > 1]
    return [{name: _text(each.get(name)) for name in varied} for each in found]


def _labelled(metrics: pd.DataFrame, runs: Sequence[_Run]) -> Iterator[dict[str, Any]]:
    """A table by label of every metric that has labels."""
    settings = {run.row["folder"]: run.setting for run in runs}
    pairs = {name: metric["pairs"] for run in runs for name, metric in run.facts["metrics"].items()}
    values = metrics[metrics["folder"].isin(list(settings)) & (metrics["labels"] != "{}")]
    read = [json.loads(labels) for labels in values["labels"]]
    values = values.assign(read=read, dims=[tuple(labels) for labels in read], setting=values["folder"].map(settings))
    for (metric, units, dims), part in values.groupby(["metric", "units", "dims"], sort=False):
        by = [dim for dim in dims if dim != pairs.get(metric)] or list(dims)
        named = {"metric": metric, "units": units, "by": by, "within": [dim for dim in dims if dim not in by]}
        keys = [tuple(labels[dim] for dim in by) for labels in part["read"]]
        cells = _cells(part.assign(label=[_joined(key) for key in keys]), list(dict.fromkeys(settings.values())))
        yield named | cells | {"rows": [_joined(key) for key in _ordered(keys)][:LABELS]}


def _joined(label: Sequence[Any]) -> str:
    return " · ".join(map(_text, label))


def _ordered(labels: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Each once: numbers by size, words as they came."""
    place = {value: index for index, value in enumerate(dict.fromkeys(part for label in labels for part in label))}
    number = (int, float)
    return sorted(
        dict.fromkeys(labels), key=lambda label: [part if isinstance(part, number) else place[part] for part in label]
    )


def _cells(values: pd.DataFrame, settings: Sequence[str]) -> dict[str, Any]:
    """One number a setting and label: the mean over runs, and their spread. A run counts once, NaN not at all."""
    one = values.groupby(["setting", "label", "folder"], sort=False)["value"].mean()
    cells = one.groupby(["setting", "label"], sort=False).agg(["mean", "min", "max", "count"])
    return {
        "cells": cells.to_dict("index"),
        "columns": settings[:SETTINGS],
        "all_columns": len(settings),
        "all_rows": values["label"].nunique(),
        "most": int(cells["count"].max()),
    }


def _figures(runs: Sequence[_Run]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The figures by name, each with whose it is, and how many are left out: those of the later runs."""
    shown: dict[str, list[dict[str, Any]]] = {}
    files = [(run, path) for run in runs for path in sorted((run.folder / "figures").glob("*.png"))]
    number = size = 0
    for run, path in files:
        size += path.stat().st_size
        if number == FIGURES or size > FIGURE_BYTES:
            break
        image = base64.b64encode(path.read_bytes()).decode()
        shown.setdefault(path.stem, []).append({"run": run, "image": image})
        number += 1
    return shown, len(files) - number


def _facts(runs: Sequence[_Run]) -> dict[str, Any]:
    """What the facts of all runs say alike, and what they do not, by run."""
    texts = [
        {
            name: f"{value / 2**30:.1f} GiB" if name == "machine.memory" else _text(value)
            for name, value in flat({name: run.facts.get(name, {}) for name in _ALIKE})
        }
        for run in runs
    ]
    names = dict.fromkeys(name for each in texts for name in each)
    differ = [name for name in names if len({each.get(name) for each in texts}) > 1]
    return {
        "alike": {name: texts[0][name] for name in names if name not in differ},
        "differ": [name for name in differ if not name.startswith("parameters.")],
        "by_run": {run.name: each for run, each in zip(runs, texts, strict=True)},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _printable(value: Any) -> Any:
    """Without colours of a terminal and other characters that no page may hold."""
    return _CONTROL.sub("", value) if type(value) is str else value
