"""Write REPORT.md and its figures from the runs in the store, and the recipe and curves of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import qwenlab as ql

HERE = Path(__file__).parent
REPORT = ql.experiments.ExperimentReport(HERE)
LOOKS = (("#009E73", "-"), ("#CC79A7", "--"))

CHANCE = 0.1  # of recall: a value is one of ten digits


def share(value: dict[str, float], digits: int = 3) -> str:
    """A mean with its interval."""
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def training(recipe: dict[str, Any], seconds: float) -> dict[str, float]:
    """The size of a training: tokens of each sort in millions, and minutes."""
    text = sum(leg["steps"] * leg["text_batch"] for leg in recipe["legs"]) * recipe["window"]
    recall = sum(leg["steps"] * leg["recall_batch"] * leg["recall_length"] for leg in recipe["legs"])
    return {"text": text / 1e6, "recall": recall / 1e6, "minutes": seconds / 60}


def thinned(lines: list[dict[str, float]], width: int = 25) -> dict[str, Any]:
    """The log of a training, short enough to keep: means of `width` steps by loss, and the seconds it took."""
    curves = {}
    for loss in ("text", "recall", "mtp"):
        found = [(line["step"], line[loss]) for line in lines if loss in line]
        steps = range(0, len(found) - width + 1, width)
        curves[loss] = [[found[k + width - 1][0], float(np.mean([v for _, v in found[k : k + width]]))] for k in steps]
    return {"seconds": max(line["seconds"] for line in lines), "losses": curves}


def loss_curves(curves: dict[str, dict[str, Any]]) -> Figure:
    """Training losses of both toys."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    titles = {"text": "next token, text", "recall": "asked-for values, recall", "mtp": "MTP head, text"}
    for panel, (loss, title) in zip(panels, titles.items(), strict=True):
        for (name, found), (color, style) in zip(curves.items(), LOOKS, strict=True):
            panel.plot(*zip(*found["losses"][loss], strict=True), style, color=color, label=name)
        panel.set(title=title, xlabel="step", yscale="log" if loss == "recall" else "linear")
        if loss == "recall":
            panel.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    panels[0].set_ylabel("loss (nats), mean of 25 steps")
    panels[0].legend()
    return figure


def recall_by_pairs(results: dict[str, Any]) -> Figure:
    """Recall against the number of pairs, with every part in place and with each kind of mixer zeroed."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    panel = figure.subplots()
    for (name, found), (color, style) in zip(results.items(), LOOKS, strict=True):
        pairs = [int(number) for number in found["recall"]]
        values = [found["recall"][str(number)] for number in pairs]
        mean = np.array([value["mean"] for value in values])
        errors = [mean - [value["low"] for value in values], [value["high"] for value in values] - mean]
        panel.errorbar(pairs, mean, yerr=errors, fmt=f"o{style}", color=color, capsize=3, label=name)
    panel.axhline(CHANCE, color="0.5", linestyle=":")
    panel.annotate("chance", (pairs[0], CHANCE), xytext=(0, 4), textcoords="offset points", color="0.4")
    panel.set(xlabel="pairs in the text", ylabel="asked-for values right (share)", ylim=(0, 1.04), xscale="log")
    panel.set_xticks(pairs, [str(number) for number in pairs])
    panel.minorticks_off()
    panel.legend(loc="center right")
    return figure


def trained(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and loss curves of each toy: of the trainings in this folder, or those kept here of the shipped files."""
    if not folder.is_dir():
        return json.loads((HERE / "recipes.json").read_text()), json.loads((HERE / "losses.json").read_text())
    recipes = {each.parent.name: json.loads(each.read_text()) for each in sorted(folder.glob("*/recipe.json"))}
    logs = {name: (folder / name / "losses.jsonl").read_text().splitlines() for name in recipes}
    return recipes, {name: thinned([json.loads(line) for line in lines]) for name, lines in logs.items()}


if __name__ == "__main__":
    recipes, curves = trained(HERE.parents[1] / "runs" / "toy-trainings")
    results = {}
    for name, run in zip(REPORT.runs["params.checkpoint"], REPORT.runs["name"], strict=True):
        recorded = json.loads(REPORT.dataset("results", run).attrs["json"])
        results[name] = recorded | {"training": training(recipes[name], curves[name]["seconds"])}
    for name, content in (("recipes", recipes), ("losses", curves)):
        (HERE / f"{name}.json").write_text(json.dumps(content) + "\n")
    with ql.plots.style():
        REPORT.figure("losses", loss_curves(curves), dpi=200)
        REPORT.figure("recall", recall_by_pairs(results), dpi=200)
    REPORT.write(results=results, share=share)
