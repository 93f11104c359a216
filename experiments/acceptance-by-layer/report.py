"""Write REPORT.md and its figures from the finished runs in the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import qwenlab as ql
from qwenlab.experiments.report.tables import estimate, labelled

REPORT = ql.experiments.ExperimentReport(Path(__file__).parent)
UNEDITED = "unedited: acceptance length"


@dataclass
class Run:
    """Acceptance of one checkpoint under ablation: by domain and pooled along given texts, and in its own text."""

    name: str
    by_domain: xr.Dataset
    pooled: xr.Dataset
    own: xr.Dataset

    def rows(self, **columns: tuple[xr.Dataset, str]) -> dict[tuple[str, str], list[str]]:
        """A row without ablation and one for each ablation; columns are a selection and the name of its number."""
        rows = {(self.name, UNEDITED): [clean(data) if what == "effect" else "" for data, what in columns.values()]}
        *_, (last, _) = columns.values()
        for ablation in last["ablation"].values:
            cells = [number(data.sel(ablation=ablation), what) for data, what in columns.values()]
            rows[self.name, f"without {self.label(ablation)}"] = cells
        return rows

    def label(self, ablation: str) -> str:
        kind = ql.plots.LABELS[str(self.pooled["kind"].sel(ablation=ablation).values)]
        return ablation if ablation.startswith("all ") else f"{ablation} ({kind})"

    def fall(self, ablation: str, *, own: bool = False) -> str:
        """The fall of the acceptance length over all domains, in words."""
        here = (self.own if own else self.pooled).isel(task=0).sel(ablation=ablation)
        verdict = "significant" if bool(here["significant"]) else "not significant"
        above = number(here, "effect_above_controls")
        return f"{number(here, 'effect').strip('*')} ({above} above its controls: {verdict})"

    def most(self, of: str) -> str:
        """The single part of a sort that costs most along given texts."""
        here = self.pooled.isel(task=0, ablation=np.flatnonzero(self.pooled["unit"] == of))
        return str(here["ablation"].values[np.argmax(here["effect"].values)])


def number(data: xr.Dataset, name: str) -> str:
    """An estimate with two decimals, and no minus before a zero."""
    return estimate(data, name, lambda value: f"{value + 0:.2f}".replace("-0.00", "0.00"))


def clean(data: xr.Dataset) -> str:
    """The acceptance length of the unedited model."""
    return number(data.isel(ablation=0), "clean_acceptance_length")


def significant(data: xr.Dataset) -> str:
    """The ablations with a significant effect, with the domains in which it is, where there are several."""
    found = []
    for name in data["ablation"].values:
        tasks = data["task"].values[data["significant"].sel(ablation=name).values]
        if len(tasks):
            found.append(f"{name}" + (f" ({', '.join(tasks)})" if data.sizes["task"] > 1 else ""))
    return "; ".join(found) or "nothing"


def read(name: str, run: str) -> Run:
    along, own = (REPORT.dataset(each, run) for each in ("along_texts", "own_text"))
    pooled, own = (ql.stats.ablated_acceptance(each, by_label=False) for each in (along, own))
    return Run(name, ql.stats.ablated_acceptance(along), pooled, own)


def table(columns: dict[str, tuple[str, str | int, str]], every: list[Run]) -> pd.DataFrame:
    """A row for each checkpoint and ablation; a column is the data, the task, and the name of the number."""
    rows = {}
    for run in every:
        cells = {title: (getattr(run, data).isel(task=task), what) for title, (data, task, what) in columns.items()}
        rows |= run.rows(**cells)
    return labelled(rows, ["checkpoint", ""], list(columns))


if __name__ == "__main__":
    found = REPORT.runs.sort_values("params.checkpoint")
    every = [read(*each) for each in zip(found["params.checkpoint"], found["name"], strict=True)]
    domains = {str(task): ("by_domain", at, "effect") for at, task in enumerate(every[0].by_domain["task"].values)}
    both = {
        "given texts: fall": ("pooled", 0, "effect"),
        "above controls": ("pooled", 0, "effect_above_controls"),
        "the model's own text: fall": ("own", 0, "effect"),
        "above its controls": ("own", 0, "effect_above_controls"),
    }
    for run in every:
        REPORT.figure(run.name.replace("/", "--"), ql.plots.ablated_acceptance(run.by_domain), dpi=110)
    REPORT.write(
        every=every, domains=table(domains, every), both=table(both, every), significant=significant, clean=clean
    )
