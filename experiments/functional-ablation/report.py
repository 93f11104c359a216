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
from qwenlab.experiments.report.tables import estimate, interval, labelled

HERE = Path(__file__).parent
REPORT = ql.experiments.ExperimentReport(HERE)
PAPER = pd.read_csv(HERE / "paper.csv", comment="#")
PUBLISHED = "published, Qwen3.5-0.8B"
GROUPS = ("all DeltaNet layers", "all attention layers", "all DeltaNet mixers", "all attention mixers")
SINGLE = ("layer", "mixer", "mlp")
WORDS = {"DeltaNet": "linear", "attention": "attention"}  # the paper's
QUANTITIES = ("norm_change", "cosine", "mixer_ratio", "lens_kl")


def number(value: float) -> str:
    """Three digits, and no minus before a zero."""
    return f"{value:.3g}" if abs(value) >= 5e-4 else "0"


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
        here = here.isel(ablation=np.flatnonzero(here["unit"] == of))
        return str(here["ablation"].values[np.argmax(here["effect"].values)])

    def cell(self, score: str, task: str, ablation: str, beyond: bool = False) -> str:
        """The effect of an ablation on a task, or its effect above its controls, with its interval."""
        here = getattr(self, score).sel(task=task, ablation=ablation)
        return estimate(here, "effect_above_controls" if beyond else "effect", number)

    def fall(self, task: str, ablation: str, beyond: bool = False) -> str:
        """Of the accuracy, for a sentence."""
        return self.cell("accuracy", task, ablation, beyond).replace("**", "")

    def rise(self, task: str, ablation: str, beyond: bool = False) -> str:
        """Of the loss, for a sentence."""
        return self.cell("loss", task, ablation, beyond).replace("**", "")

    def pairs_with_significance(self, ablation: str) -> str:
        significant = self.accuracy["significant"].sel(ablation=ablation)
        return ", ".join(task.split()[2] for task in self.recall if bool(significant.sel(task=task))) or "no number of"

    def clean_accuracy(self, task: str) -> str:
        """Of the unedited model, with its interval."""
        here = self.accuracy.sel(task=task)
        low, high = here["above_chance_interval"].values + float(here["chance"])
        return f"{number(float(here['clean_accuracy']))} [{number(low)}, {number(high)}]"

    def groups(self) -> list[str]:
        return [name for name in GROUPS if name in self.loss["ablation"].values]

    def places(self) -> list[str]:
        """The sets that are not groups."""
        sets = self.loss["ablation"].values[(self.loss["unit"] == "set").values]
        return [name for name in sets if name not in GROUPS]

    def layers(self) -> list[str]:
        """The layers, mixers and MLPs that cost most."""
        tasks = ("prose", "code", self.recall[-1])
        return list(dict.fromkeys(self.most(of, task, "loss") for of in SINGLE for task in tasks))


def runs() -> Iterator[Run]:
    """The plan's runs, and the newest of every other checkpoint, in this order."""
    checkpoint, found = "params.checkpoint", ql.experiments.find(HERE.name)
    others = found[~found[checkpoint].isin(REPORT.runs[checkpoint])].drop_duplicates(checkpoint, keep="last")
    for row in pd.concat([REPORT.runs.sort_values(checkpoint), others]).to_dict("records"):
        data = [REPORT.dataset(each, row["name"]) for each in ("sweep", "contributions")]
        yield Run(row[checkpoint].removeprefix("Qwen/"), *data)


def recall_table(every: list[Run]) -> pd.DataFrame:
    """The fall of the accuracy: a row for each checkpoint and ablation, a column for each number of pairs."""
    rows, all_deltanet = {}, "all DeltaNet mixers"
    for run in every:
        tasks, hardest = run.recall, run.recall[-1]
        rows[run.name, "accuracy, unedited"] = [run.clean_accuracy(task) for task in tasks]
        for name in ("all attention mixers", all_deltanet, run.most("mixer", hardest), run.most("mlp", hardest)):
            rows[run.name, f"fall without {name}"] = [run.cell("accuracy", task, name) for task in tasks]
        rows[run.name, f"the same above its controls: {all_deltanet}"] = [
            run.cell("accuracy", task, all_deltanet, beyond=True) for task in tasks
        ]
    return labelled(rows, ["checkpoint", ""], [task.removeprefix("recall of ") for task in every[0].recall])


def table(every: list[Run], of: Callable[[Run], list[str]], tasks: list[str], score: str) -> pd.DataFrame:
    """One row per checkpoint and ablation; for each task the effect, and the effect above the controls."""
    rows = {
        (run.name, name): [run.cell(score, task, name, beyond) for task in tasks for beyond in (False, True)]
        for run in every
        for name in of(run)
    }
    return labelled(rows, ["checkpoint", "without"], [f"{t}{more}" for t in tasks for more in ("", ", above controls")])


def contributions(every: list[Run]) -> pd.DataFrame:
    """A row for each checkpoint and layer: means over texts with Student's interval, and the loss without it."""
    rows = {}
    for run in every:
        for layer in run.contributions["layer"].values:
            here = run.contributions.sel(layer=layer)
            cells = [interval(pd.Series(here[name].values)) for name in QUANTITIES]
            label = f"{layer}, {ql.plots.LABELS[str(here['kind'].values)]}"
            rows[run.name, label] = [*cells, run.cell("loss", "prose", f"layer {layer}")]
    return labelled(rows, ["checkpoint", "layer"], [*QUANTITIES, "loss without it, prose"])


def beside_paper(every: list[Run]) -> pd.DataFrame:
    """Losses under the paper's conditions: its own, and those of each checkpoint on prose."""
    published = PAPER[PAPER["quantity"] == "loss"].set_index("condition")["value"]
    rows = {("unedited", ""): [number(published["baseline"])]}
    rows[("unedited", "")] += [number(float(run.loss["clean_loss"].sel(task="prose"))) for run in every]
    for kind, word in WORDS.items():
        name = f"all {kind} layers"
        drawn = published[published.index.str.startswith(f"random_control_{word}")]
        rows[f"without {name}", ""] = [number(published[f"all_{word}_off"]), *(_losses(run, name) for run in every)]
        rows["as many layers, drawn again", f"{name}"] = [
            f"{number(drawn.mean())}, from {number(drawn.min())} to {number(drawn.max())}",
            *(_drawn(run, name) for run in every),
        ]
    return labelled(rows, ["loss (nat/token)", "instead of"], [PUBLISHED, *(run.name for run in every)])


def _losses(run: Run, name: str) -> str:
    here = run.loss.sel(task="prose", ablation=name)
    low, high = here["effect_interval"].values + float(here["clean_loss"])
    return f"{number(float(here['effect'] + here['clean_loss']))} [{number(low)}, {number(high)}]"


def _drawn(run: Run, name: str) -> str:
    here = run.loss.sel(task="prose")
    values = here["control_effect"].values[here["control_of"].values == name] + float(here["clean_loss"])
    return f"{number(values.mean())}, from {number(values.min())} to {number(values.max())}"


def streams(every: list[Run]) -> pd.DataFrame:
    """What layers add, at a few places: the paper's, and those of each checkpoint."""
    paper = PAPER[PAPER["table"].str.contains("experiment2")]
    published = paper.pivot(index="layer", columns="quantity", values="value")
    kinds = paper.groupby("layer")["condition"].first()
    frames = [(published, kinds.map({"linear": "linear_attention", "attention": "full_attention"}))]
    for run in every:
        means = run.contributions.mean("text").to_dataframe()
        frames.append((means, means["kind"]))
    rows = {
        (quantity, place): [number(pick(frame[quantity], kind)) for frame, kind in frames]
        for quantity in QUANTITIES
        for place, pick in PLACES.items()
    }
    return labelled(rows, ["", "of"], [PUBLISHED, *(run.name for run in every)])


PLACES: dict[str, Callable[[pd.Series, pd.Series], float]] = {
    "the first layer": lambda values, kind: values.iloc[0],
    "the median DeltaNet layer": lambda values, kind: values[kind == "linear_attention"].median(),
    "the median attention layer": lambda values, kind: values[kind == "full_attention"].median(),
    "the last layer": lambda values, kind: values.iloc[-1],
}


def accuracies() -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The paper's accuracies by condition and benchmark, and those of the random controls of each kind."""
    known = PAPER[(PAPER["quantity"] == "accuracy") & (PAPER["samples"] > 50)]
    found = known.pivot(index="condition", columns="benchmark", values="value")
    return found, {kind: found[found.index.str.startswith(f"random_control_{word}")] for kind, word in WORDS.items()}


def benchmarks() -> pd.DataFrame:
    """The paper's accuracies under its group ablations, and the range of its three random controls."""
    found, controls = accuracies()
    rows = {"unedited": found.loc["baseline"].map(number)}
    for kind, drawn in controls.items():
        rows[f"without all {kind} layers"] = found.loc[f"all_{WORDS[kind]}_off"].map(number)
        rows[f"as many layers as {kind} has, drawn again"] = drawn.min().map(number) + " to " + drawn.max().map(number)
    shown = ["mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc", "gsm8k"]
    return pd.DataFrame(rows).T[shown].rename_axis("accuracy")


def outside() -> str:
    """How many of the paper's group ablations are worse than each of their random controls."""
    found, controls = accuracies()
    lower = {kind: found.loc[f"all_{WORDS[kind]}_off"] < drawn.min() for kind, drawn in controls.items()}
    worse = [f"{name} without all {kind} layers" for kind, each in lower.items() for name in each.index[each]]
    return f"{len(worse)} of {sum(map(len, lower.values()))}" + (f" ({', '.join(worse)})" if worse else "")


@ql.plots.style()
def recall_figure(every: list[Run]) -> Figure:
    """Accuracy of recall by the number of pairs, a panel for each checkpoint."""
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
            axes.plot(pairs, clean - here["control_effect"].values[:, row], color="0.7", linewidth=1, zorder=1)
        axes.plot([], [], color="0.7", linewidth=1, label="as many parameters elsewhere")
        axes.plot(pairs, clean, color="black", marker="o", markersize=4, label="unedited")
        lines = (
            ("all attention mixers", orange, "-", "s"),
            ("all DeltaNet mixers", blue, "-", "^"),
            (one, blue, "--", "v"),
        )
        for name, colour, line, mark in lines:
            effect = here.sel(ablation=name)
            low, high = (clean - effect["effect_interval"].sel(bound=bound).values for bound in ("high", "low"))
            axes.fill_between(pairs, low, high, color=colour, alpha=0.2, linewidth=0)
            label = "without the mixer in brackets" if name == one and not same else f"without {name}"
            axes.plot(
                pairs, clean - effect["effect"].values, line, color=colour, marker=mark, markersize=4, label=label
            )
        axes.axhline(float(here["chance"].values[0]), color="0.4", linestyle=":", linewidth=1, label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(pairs, [str(each) for each in pairs])
        axes.minorticks_off()
        axes.set(title=run.name if same else f"{run.name} ({one})", xlabel="pairs listed", ylim=(-0.03, 1.03))
    grid[0][0].set(ylabel="accuracy")
    grid[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return drawn


if __name__ == "__main__":
    every = list(runs())
    REPORT.figure("recall", recall_figure(every))
    for run in every:
        single = run.loss.isel(ablation=np.isin(run.loss["unit"], SINGLE))
        REPORT.figure(run.name.replace("/", "--"), ql.plots.ablation_map(single), dpi=110)
    REPORT.write(
        every=every,
        recall=recall_table(every),
        groups=table(every, Run.groups, ["prose", "code"], "loss"),
        found=table(every, Run.groups, ["needle", "induction"], "accuracy"),
        layers=table(every, Run.layers, ["prose", every[0].recall[-1]], "loss"),
        places=table(every, Run.places, ["prose", "recall of 16 pairs"], "loss"),
        contributions=contributions(every),
        paper=beside_paper(every),
        streams=streams(every),
        benchmarks=benchmarks(),
        outside=outside(),
    )
