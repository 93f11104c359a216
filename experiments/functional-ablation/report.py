"""Write REPORT.md and its figures from the finished runs in the store: the toys', and those of other checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.experiments.report.tables import interval, markdown

HERE = Path(__file__).parent
PLAN = ql.experiments.plan(HERE)
CHECKPOINT = "params.checkpoint"
GROUPS = ("all DeltaNet layers", "all attention layers", "all DeltaNet mixers", "all attention mixers")
SINGLE = ("layer", "mixer", "mlp")
TEXT = ("prose", "code")


@dataclass
class Run:
    """One run: the statistics of its sweep, and what its layers add."""

    name: str
    sweep: xr.Dataset
    contributions: xr.Dataset

    @cached_property
    def loss(self) -> xr.Dataset:
        return ql.stats.ablations(self.sweep)

    @cached_property
    def accuracy(self) -> xr.Dataset:
        return ql.stats.ablations(self.sweep, score="accuracy")

    @property
    def recall(self) -> list[str]:
        """Its tasks of recall, the fewest pairs first."""
        return [task for task in self.loss["task"].values if task.startswith("recall of")]

    def most(self, of: str, task: str, score: str = "accuracy") -> str:
        """The single part of a sort that costs most on a task."""
        here = getattr(self, score).sel(task=task)
        here = here.isel(ablation=np.flatnonzero(here["of"] == of))
        return str(here["ablation"].values[np.argmax(here["harm"].values)])


def runs() -> Iterator[Run]:
    """The plan's runs, and the newest of every other checkpoint, in this order."""
    planned, found = ql.experiments.find(PLAN), ql.experiments.find(HERE.name)
    others = found[~found[CHECKPOINT].isin(planned[CHECKPOINT])].drop_duplicates(CHECKPOINT, keep="last")
    for row in pd.concat([planned.sort_values(CHECKPOINT), others]).itertuples():
        data = [
            ql.experiments.datasets(each, HERE.name, where=f"name = '{row.name}'").isel(run=0)
            for each in ("sweep", "contributions")
        ]
        (name,) = found[CHECKPOINT][found["name"] == row.name].unique()
        yield Run(name.removeprefix("Qwen/"), *data)


def number(value: float) -> str:
    """Three digits, and no minus before a zero."""
    return f"{value:.3g}" if abs(value) >= 5e-4 else "0"


def told(data: xr.Dataset, name: str, **at: str) -> str:
    """A number with its interval, bold where the ablation stands."""
    here = data.sel(**at)
    low, high = here[f"{name}_interval"].values
    ends = "" if np.isnan(low) else f" [{number(low)}, {number(high)}]"
    words = f"{number(float(here[name]))}{ends}"
    return f"**{words}**" if name == "harm" and bool(here["stands"]) else words


def clean_accuracy(run: Run, task: str) -> str:
    """Of the unedited model, with its interval."""
    here = run.accuracy.sel(task=task)
    low, high = here["above_chance_interval"].values + float(here["chance"])
    return f"{number(float(here['clean_accuracy']))} [{number(low)}, {number(high)}]"


def recall_table(every: list[Run]) -> pd.DataFrame:
    """One row a checkpoint and ablation, one column a number of pairs: fall of the accuracy."""
    rows = {}
    for run in every:
        hardest = run.recall[-1]
        shown = ["all attention mixers", "all DeltaNet mixers", run.most("mixer", hardest), run.most("mlp", hardest)]
        rows[run.name, "accuracy, unedited"] = [clean_accuracy(run, task) for task in run.recall]
        for name in shown:
            rows[run.name, f"fall without {name}"] = [
                told(run.accuracy, "harm", task=t, ablation=name) for t in run.recall
            ]
        rows[run.name, "the same beyond its controls: all DeltaNet mixers"] = [
            told(run.accuracy, "beyond_controls", task=task, ablation="all DeltaNet mixers") for task in run.recall
        ]
    return _frame(rows, ["checkpoint", ""], [task.removeprefix("recall of ") for task in every[0].recall])


def table(every: list[Run], of: Callable[[Run], list[str]], tasks: list[str], score: str) -> pd.DataFrame:
    """One row a checkpoint and ablation; for each task the harm, and what of it goes beyond the controls."""
    rows = {}
    for run in every:
        data = getattr(run, score)
        for name in of(run):
            rows[run.name, name] = [
                told(data, what, task=task, ablation=name) for task in tasks for what in ("harm", "beyond_controls")
            ]
    return _frame(rows, ["checkpoint", "without"], [f"{t}{more}" for t in tasks for more in ("", ", beyond controls")])


def _frame(rows: dict[tuple[str, str], list[str]], names: list[str], columns: list[str]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(rows, names=names)
    return pd.DataFrame(list(rows.values()), index=index, columns=columns)


def groups(run: Run) -> list[str]:
    there = set(run.loss["ablation"].values)
    return [name for name in GROUPS if name in there]


def places(run: Run) -> list[str]:
    """The sets that are no groups."""
    return [name for name in run.loss["ablation"].values[(run.loss["of"] == "set").values] if name not in GROUPS]


def layers(run: Run) -> list[str]:
    """The layers, mixers and MLPs that cost most."""
    chosen = [run.most(of, task, "loss") for of in SINGLE for task in ("prose", "code", run.recall[-1])]
    return list(dict.fromkeys(chosen))


def contributions(every: list[Run]) -> pd.DataFrame:
    """One row a checkpoint and layer: means over texts with Student's interval, and the loss without it."""
    rows = {}
    for run in every:
        for layer in run.contributions["layer"].values:
            here = run.contributions.sel(layer=layer)
            kind = ql.plots.LABELS[str(here["kind"].values)]
            cells = [interval(pd.Series(here[name].values)) for name in QUANTITIES]
            loss = told(run.loss, "harm", task="prose", ablation=f"layer {layer}")
            rows[run.name, f"{layer}, {kind}"] = [*cells, loss]
    return _frame(rows, ["checkpoint", "layer"], [*QUANTITIES, "loss without it, prose"])


QUANTITIES = ("norm_change", "cosine", "mixer_ratio", "lens_kl")


def beside_paper(every: list[Run]) -> pd.DataFrame:
    """Losses under the paper's conditions: its own, and those of each checkpoint on prose."""
    published = PAPER[PAPER["quantity"] == "loss"].set_index("condition")["value"]
    rows = {("unedited", ""): [number(published["baseline"])]}
    rows[("unedited", "")] += [number(float(run.loss["clean_loss"].sel(task="prose"))) for run in every]
    for kind, word in (("DeltaNet", "linear"), ("attention", "attention")):
        name = f"all {kind} layers"
        drawn = published[published.index.str.startswith(f"random_control_{word}")]
        rows[f"without {name}", ""] = [number(published[f"all_{word}_off"]), *(_losses(run, name) for run in every)]
        rows["as many layers, drawn again", f"{name}"] = [
            f"{number(drawn.mean())}, from {number(drawn.min())} to {number(drawn.max())}",
            *(_drawn(run, name) for run in every),
        ]
    return _frame(rows, ["loss (nat/token)", "in the place of"], ["published, Qwen3.5-0.8B", *(r.name for r in every)])


def _losses(run: Run, name: str) -> str:
    here = run.loss.sel(task="prose", ablation=name)
    low, high = here["harm_interval"].values + float(here["clean_loss"])
    return f"{number(float(here['harm'] + here['clean_loss']))} [{number(low)}, {number(high)}]"


def _drawn(run: Run, name: str) -> str:
    here = run.loss.sel(task="prose")
    values = here["control_harm"].values[here["control_of"].values == name] + float(here["clean_loss"])
    return f"{number(values.mean())}, from {number(values.min())} to {number(values.max())}"


def streams(every: list[Run]) -> pd.DataFrame:
    """What layers add, at a few places: the paper's, and those of each checkpoint."""
    published = PAPER[PAPER["table"].str.contains("experiment2")].pivot(
        index="layer", columns="quantity", values="value"
    )
    kinds = PAPER[PAPER["table"].str.contains("experiment2")].groupby("layer")["condition"].first()
    frames = [(published, kinds.map({"linear": "linear_attention", "attention": "full_attention"}))]
    for run in every:
        means = run.contributions.mean("text").to_dataframe()
        frames.append((means, means["kind"]))
    rows = {}
    for quantity in QUANTITIES:
        for place, pick in PLACES.items():
            rows[quantity, place] = [number(pick(frame[quantity], kind)) for frame, kind in frames]
    return _frame(rows, ["", "of"], ["published, Qwen3.5-0.8B", *(run.name for run in every)])


PLACES: dict[str, Callable[[pd.Series, pd.Series], float]] = {
    "the first layer": lambda values, kind: values.iloc[0],
    "the median DeltaNet layer": lambda values, kind: values[kind == "linear_attention"].median(),
    "the median attention layer": lambda values, kind: values[kind == "full_attention"].median(),
    "the last layer": lambda values, kind: values.iloc[-1],
}


def benchmarks() -> pd.DataFrame:
    """The paper's accuracies under its group ablations, and the range of its three random controls."""
    known = PAPER[(PAPER["quantity"] == "accuracy") & (PAPER["samples"] > 50)]
    wide = known.pivot(index="condition", columns="benchmark", values="value")
    wide = wide[["mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc", "gsm8k"]]
    rows = {"unedited": wide.loc["baseline"].map(number)}
    for kind, word in (("DeltaNet", "linear"), ("attention", "attention")):
        drawn = wide[wide.index.str.startswith(f"random_control_{word}")]
        rows[f"without all {kind} layers"] = wide.loc[f"all_{word}_off"].map(number)
        rows[f"as many layers as {kind} has, drawn again"] = [
            f"{number(low)} to {number(high)}" for low, high in zip(drawn.min(), drawn.max(), strict=True)
        ]
    return pd.DataFrame(rows, index=wide.columns).T.rename_axis("accuracy")


def outside() -> str:
    """How many of the paper's group ablations are worse than each of their random controls."""
    known = PAPER[(PAPER["quantity"] == "accuracy") & (PAPER["samples"] > 50)]
    wide = known.pivot(index="condition", columns="benchmark", values="value")
    worse, total = [], 0
    for kind, word in (("DeltaNet", "linear"), ("attention", "attention")):
        drawn, total = wide[wide.index.str.startswith(f"random_control_{word}")], total + wide.shape[1]
        lower = wide.loc[f"all_{word}_off"] < drawn.min()
        worse += [f"{name} without all {kind} layers" for name in wide.columns[lower]]
    return f"{len(worse)} of {total}" + (f" ({', '.join(worse)})" if worse else "")


@ql.plots.style()
def recall_figure(every: list[Run]) -> Figure:
    """Accuracy of recall by the number of pairs, a panel a checkpoint."""
    drawn, grid = plt.subplots(
        1, len(every), figsize=(1.6 + 3.6 * len(every), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    needed = {run.name: run.most("mixer", run.recall[-1]) for run in every}
    same = len(set(needed.values())) == 1
    blue, orange = (ql.plots.COLOURS[kind] for kind in ("linear_attention", "full_attention"))
    for axes, run in zip(grid[0], every, strict=True):
        here = run.accuracy.sel(task=run.recall)
        pairs = [int(task.split()[2]) for task in run.recall]
        clean, one = here["clean_accuracy"].values, needed[run.name]
        for row in np.flatnonzero(here["control_of"].values == "all DeltaNet mixers"):
            axes.plot(pairs, clean - here["control_harm"].values[:, row], color="0.7", linewidth=1, zorder=1)
        axes.plot([], [], color="0.7", linewidth=1, label="as many parameters elsewhere")
        axes.plot(pairs, clean, color="black", marker="o", markersize=4, label="unedited")
        lines = (
            ("all attention mixers", orange, "-", "s"),
            ("all DeltaNet mixers", blue, "-", "^"),
            (one, blue, "--", "v"),
        )
        for name, colour, line, mark in lines:
            harm = here.sel(ablation=name)
            low, high = (clean - harm["harm_interval"].sel(bound=bound).values for bound in ("high", "low"))
            axes.fill_between(pairs, low, high, color=colour, alpha=0.2, linewidth=0)
            label = "without the mixer in brackets" if name == one and not same else f"without {name}"
            axes.plot(pairs, clean - harm["harm"].values, line, color=colour, marker=mark, markersize=4, label=label)
        axes.axhline(float(here["chance"].values[0]), color="0.4", linestyle=":", linewidth=1, label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(pairs, [str(each) for each in pairs])
        axes.minorticks_off()
        axes.set(title=run.name if same else f"{run.name} ({one})", xlabel="pairs told", ylim=(-0.03, 1.03))
    grid[0][0].set(ylabel="accuracy")
    grid[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return drawn


def words(every: list[Run]) -> dict[str, str]:
    """Numbers that the text names: @TOY SCORE WHAT TASK ABLATION@, by everything that could be asked for."""
    found = {}
    for run in every:
        for score in ("loss", "accuracy"):
            data = getattr(run, score)
            for task in data["task"].values:
                for name in data["ablation"].values:
                    for what, short in (("harm", "harm"), ("beyond_controls", "beyond")):
                        key = f"@{run.name}|{score}|{short}|{task}|{name}@"
                        found[key] = told(data, what, task=task, ablation=name).replace("**", "")
        for name in run.accuracy["ablation"].values:
            stands = run.accuracy["stands"].sel(ablation=name)
            pairs = [task.split()[2] for task in run.recall if bool(stands.sel(task=task))]
            found[f"@{run.name}|stands|{name}@"] = ", ".join(pairs) or "no number of"
    return found


PAPER = pd.read_csv(HERE / "paper.csv", comment="#")


def main() -> None:
    every = list(runs())
    if not every:
        raise SystemExit(f"No finished run in the store: run `qwenlab run {HERE.parent.name}/{HERE.name}` first.")
    facts = ql.experiments.facts(ql.experiments.find(PLAN)["name"].iloc[0])
    (HERE / "figures").mkdir(exist_ok=True)
    recall_figure(every).savefig(HERE / "figures" / "recall.png", dpi=150)
    maps = []
    for run in every:
        single = run.loss.isel(ablation=np.flatnonzero(np.isin(run.loss["of"], SINGLE)))
        file = f"figures/{run.name.replace('/', '--')}.png"
        ql.plots.ablation_map(single).savefig(HERE / file, dpi=110)
        maps.append(f"![Rise of the loss by layer and task, {run.name}]({file})\n\n*{run.name}*")
    found = {
        "RECALL": markdown(recall_table(every)),
        "GROUPS": markdown(table(every, groups, list(TEXT), "loss")),
        "FOUND": markdown(table(every, groups, ["needle", "induction"], "accuracy")),
        "LAYERS": markdown(table(every, layers, ["prose", every[0].recall[-1]], "loss")),
        "PLACES": markdown(table(every, places, ["prose", "recall of 16 pairs"], "loss")),
        "CONTRIBUTIONS": markdown(contributions(every)),
        "PAPER": markdown(beside_paper(every)),
        "STREAMS": markdown(streams(every)),
        "BENCHMARKS": markdown(benchmarks()),
        "OUTSIDE": outside(),
        "MAPS": "\n\n".join(maps),
        "FINDINGS": "\n".join(ql.stats.ablation_findings(each) for run in every for each in (run.accuracy, run.loss)),
        "RUNS": str(len(every)),
        "TEXTS": str(int(every[0].loss["texts"].min())),
        "TESTS": str(every[0].loss.attrs["hypotheses"]),
        "VERSIONS": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    text = (HERE / "report.md.in").read_text()
    for name, value in {**{f"@{name}@": value for name, value in found.items()}, **words(every)}.items():
        text = text.replace(name, value)
    (HERE / "REPORT.md").write_text(text)


if __name__ == "__main__":
    main()
