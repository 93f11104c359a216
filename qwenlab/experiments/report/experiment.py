"""REPORT.md of an experiment: a Jinja template in its folder, filled with statistics of its finished runs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qwenlab.errors import UnknownRun
from qwenlab.experiments.plan.points import plan
from qwenlab.experiments.report.tables import figure_link, interval, markdown, spread, unwrap, wide
from qwenlab.experiments.store.find import datasets, facts, find, metrics
from qwenlab.experiments.store.location import StoreLike
from qwenlab.record.whole_files import replacing

TEMPLATE, REPORT, FIGURES = "report.md.j2", "REPORT.md", "figures"


class ExperimentReport:
    """What the report of one experiment is made of, and the file itself.

    folder  of the experiment: spec.yaml, and report.md.j2, the text with expressions such as `{{ runs | length }}`
    store   as in `ql.experiments.find`

    In the template are known: `runs` (a DataFrame, see `find`), `facts` (of the first run), `versions` (text), `metric`
    (a function: see below), and what `write` is given. Filters make text of it: `wide` and `markdown` for tables,
    `spread` and `interval` for a Series of numbers, `figure_link`, and `unwrap` to make one line of several. An unknown
    name is an error.

    Raises UnknownRun where the store has no finished run of the plan.
    """

    def __init__(self, folder: str | Path, *, store: StoreLike = None) -> None:
        self.folder, self.store = Path(folder), store
        self.plan = plan(self.folder)
        self.runs = find(self.plan, store=store)
        if self.runs.empty:
            raise UnknownRun(
                f"No finished run of {self.folder.resolve().name} in the store: run `qwenlab run {folder}` first."
            )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts of the first run."""
        return facts(self.runs["name"].iloc[0], store=self.store)

    def metric(self, *names: str, times: float = 1) -> pd.DataFrame:
        """Values of metrics, one after the other (see `ql.experiments.metrics`); `times` converts their units."""
        values = pd.concat([metrics(self.plan, name, store=self.store) for name in names])
        return values.assign(value=times * values["value"])

    def dataset(self, name: str, run: str) -> xr.Dataset:
        """A dataset that one run recorded."""
        return datasets(name, run.partition("/")[0], where=f"name = '{run}'", store=self.store).isel(run=0)

    def figure(self, name: str, figure: Any, *, dpi: int = 150) -> None:
        """Save a matplotlib figure as figures/NAME.png in the experiment's folder."""
        with replacing(self.folder / FIGURES / f"{name}.png") as beside:
            figure.savefig(beside, format="png", dpi=dpi)

    def write(self, **values: Any) -> Path:
        """Write REPORT.md and return its path.

        values  what the template names; a DataFrame is written as a Markdown table
        """
        versions = ", ".join(f"{name} {version}" for name, version in self.facts["versions"].items())
        known = {"runs": self.runs, "facts": self.facts, "versions": versions, "metric": self.metric}
        environment = Environment(
            loader=FileSystemLoader(self.folder),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: markdown(value) if isinstance(value, pd.DataFrame) else value,
        )
        environment.filters |= {each.__name__: each for each in (figure_link, interval, markdown, spread, unwrap, wide)}
        with replacing(self.folder / REPORT) as beside:
            beside.write_text(environment.get_template(TEMPLATE).render(known | values), encoding="utf-8")
        return self.folder / REPORT
