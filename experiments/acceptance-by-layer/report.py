"""Write REPORT.md and its figures from the finished runs in the store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import qwenlab as ql
from qwenlab.experiments.report.tables import markdown

HERE = Path(__file__).parent
PLAN = ql.experiments.plan(HERE)
CHECKPOINT = "params.checkpoint"
GROUPS = ("all DeltaNet", "all attention")


@dataclass
class Run:
    """One run: acceptance under ablation along given texts, and in the text that each model writes."""

    name: str
    along_texts: xr.Dataset
    own_text: xr.Dataset

    @cached_property
    def along(self) -> xr.Dataset:
        return ql.stats.ablated_acceptance(self.along_texts)

    @cached_property
    def pooled(self) -> xr.Dataset:
        """Along given texts, all domains as one."""
        return ql.stats.ablated_acceptance(self.along_texts, by_label=False)

    @cached_property
    def own(self) -> xr.Dataset:
        return ql.stats.ablated_acceptance(self.own_text, by_label=False)


def runs() -> list[Run]:
    found = ql.experiments.find(PLAN).sort_values(CHECKPOINT)
    made = []
    for row in found.to_dict("records"):
        data = [
            ql.experiments.datasets(name, HERE.name, where=f"name = '{row['name']}'").isel(run=0)
            for name in ("along_texts", "own_text")
        ]
        made.append(Run(row[CHECKPOINT], *data))
    return made


def number(value: float) -> str:
    """Two digits behind the point, and no minus before a zero."""
    return f"{value + 0:.2f}".replace("-0.00", "0.00")


def told(data: xr.Dataset, name: str, **at: str) -> str:
    """A number with its interval, bold where the ablation stands."""
    here = data.sel(**at)
    low, high = here[f"{name}_interval"].values
    words = number(float(here[name])) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")
    return f"**{words}**" if name == "harm" and bool(here["stands"]) else words


def by_domain(every: list[Run]) -> pd.DataFrame:
    """One row a checkpoint and ablation, one column a domain: fall of the acceptance length along given texts."""
    rows = {}
    for run in every:
        rows[run.name, "unedited: acceptance length"] = [
            told(run.along, "clean_acceptance_length", task=domain) for domain in run.along["task"].values
        ]
        for name in run.along["ablation"].values:
            rows[run.name, _kind(run, name)] = [
                told(run.along, "harm", task=domain, ablation=name) for domain in run.along["task"].values
            ]
    return _frame(rows, every[0].along["task"].values)


def both(every: list[Run]) -> pd.DataFrame:
    """One row a checkpoint and ablation: along given texts and in each model's own, all domains as one."""
    rows = {}
    for run in every:
        (task,) = run.own["task"].values
        rows[run.name, "unedited: acceptance length"] = [
            *(told(run.pooled, "clean_acceptance_length", task=task), ""),
            *(told(run.own, "clean_acceptance_length", task=task), ""),
        ]
        for name in run.own["ablation"].values:
            rows[run.name, _kind(run, name)] = [
                told(data, what, task=task, ablation=name)
                for data in (run.pooled, run.own)
                for what in ("harm", "beyond_controls")
            ]
    return _frame(rows, ["given texts: fall", "beyond controls", "the model's own text: fall", "beyond its controls"])


def _kind(run: Run, name: str) -> str:
    kind = str(run.along["kind"].sel(ablation=name).values)
    return f"without {name}" if name in GROUPS else f"without {name} ({ql.plots.LABELS[kind]})"


def _frame(rows: dict[tuple[str, str], list[str]], columns: list[str]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(rows, names=["checkpoint", ""])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(columns))


def findings(run: Run) -> str:
    """What of one checkpoint moves and what does not, in sentences."""
    (task,) = run.pooled["task"].values

    def fall(name: str, data: xr.Dataset = run.pooled) -> str:
        beyond = told(data, "beyond_controls", task=task, ablation=name)
        stands = "stands" if bool(data["stands"].sel(task=task, ablation=name)) else "does not stand"
        return f"{told(data, 'harm', task=task, ablation=name).strip('*')} ({beyond} beyond its controls: {stands})"

    lines = [
        f"Along given texts a round emits {told(run.pooled, 'clean_acceptance_length', task=task)} tokens, all domains "
        f"together. Without all DeltaNet mixers that falls by {fall('all DeltaNet')}, without all attention mixers by "
        f"{fall('all attention')}.",
        f"Alone, the mixer that costs most is {_most(run, 'mixer')}: {fall(_most(run, 'mixer'))}. Of MLPs it is "
        f"{_most(run, 'mlp')}: {fall(_most(run, 'mlp'))}.",
        f"By domain stand: {_standing(run.along)}.",
        f"In its own text a round emits {told(run.own, 'clean_acceptance_length', task=task)} tokens, and "
        f"{_standing(run.own)} stands; without all DeltaNet mixers that falls by {fall('all DeltaNet', run.own)}, "
        f"without all attention mixers by {fall('all attention', run.own)}.",
    ]
    return f"- **{run.name}.** " + " ".join(lines)


def _most(run: Run, of: str) -> str:
    """The single part of a sort that costs most along given texts."""
    here = run.pooled.isel(task=0, ablation=np.flatnonzero(run.pooled["of"] == of))
    return str(here["ablation"].values[np.argmax(here["harm"].values)])


def _standing(data: xr.Dataset) -> str:
    """What stands, with the domains in which it does where there are several."""
    found = []
    for name in data["ablation"].values:
        tasks = data["task"].values[data["stands"].sel(ablation=name).values]
        if len(tasks):
            found.append(f"{name}" + (f" ({', '.join(tasks)})" if data.sizes["task"] > 1 else ""))
    return "; ".join(found) or "nothing"


def main() -> None:
    every = runs()
    if not every:
        raise SystemExit(f"No finished run in the store: run `qwenlab run {HERE.parent.name}/{HERE.name}` first.")
    facts = ql.experiments.facts(ql.experiments.find(PLAN)["name"].iloc[0])
    (HERE / "figures").mkdir(exist_ok=True)
    figures = []
    for run in every:
        file = f"figures/{run.name.replace('/', '--')}.png"
        ql.plots.ablated_acceptance(run.along).savefig(HERE / file, dpi=110)
        figures.append(f"![Fall of the acceptance length by layer and domain, {run.name}]({file})\n\n*{run.name}*")
    text = (HERE / "report.md.in").read_text()
    found = {
        "DOMAINS": markdown(by_domain(every)),
        "BOTH": markdown(both(every)),
        "FIGURES": "\n\n".join(figures),
        "FINDINGS": "\n".join(map(findings, every)),
        "RUNS": str(len(every)),
        "TEXTS": str(int(every[0].along["texts"].min())),
        "TESTS": str(every[0].along.attrs["hypotheses"]),
        "VERSIONS": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    for name, value in found.items():
        text = text.replace(f"@{name}@", value)
    (HERE / "REPORT.md").write_text(text)


if __name__ == "__main__":
    main()
