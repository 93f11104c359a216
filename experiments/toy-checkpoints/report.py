"""Write REPORT.md and its figures from the runs in the store, and the recipe and curves of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.experiments.report.tables import rows

CHANCE = 0.1  # of recall: a value is one of ten digits


def write_report(folder: Path, results: dict[str, Any], curves: dict[str, dict[str, Any]]) -> None:
    """REPORT.md, losses.png and recall.png in `folder`. The prose around the tables is in report.md.in."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    with ql.plots.style():
        loss_curves(curves).savefig(figures / "losses.png")
        recall_by_pairs(results).savefig(figures / "recall.png")
    text = (folder / "report.md.in").read_text()
    tables = {
        "TRAINING": training_table(results, curves),
        "LOSSES": loss_table(results),
        "RECALL": recall_table(results),
        "CARRIERS": carrier_table(results),
        "DRAFTS": draft_table(results),
        "ROUTING": routing_lines(results),
    }
    for name, table in tables.items():
        text = text.replace(f"@{name}@", table)
    (folder / "REPORT.md").write_text(text)


def share(value: dict[str, float]) -> str:
    """Mean and its interval, as shares."""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def training_table(results: dict[str, Any], curves: dict[str, dict[str, Any]]) -> str:
    """What each training was."""
    body = []
    for name, found in results.items():
        recipe = found["recipe"]
        text = sum(leg["steps"] * leg["text_batch"] for leg in recipe["legs"]) * recipe["window"]
        recall = sum(leg["steps"] * leg["recall_batch"] * leg["recall_length"] for leg in recipe["legs"])
        minutes = curves[name]["seconds"] / 60
        size, millions = f"{found['parameters']:,}", [f"{tokens / 1e6:.1f} M" for tokens in (text, recall)]
        body.append([name, size, *millions, f"{minutes:.0f} min", f"`{found['hash'][7:19]}`"])
    header = ["toy", "parameters, head included", "text tokens", "recall tokens, padding included", "one core", "hash"]
    return rows(header, body)


def loss_table(results: dict[str, Any]) -> str:
    """Held-out loss beside the unigram entropy."""
    body = []
    for name, found in results.items():
        for domain, loss in found["losses"].items():
            interval = f"{loss['loss']['mean']:.2f} [{loss['loss']['low']:.2f}, {loss['loss']['high']:.2f}]"
            body.append(
                [
                    name,
                    domain,
                    interval,
                    f"{loss['loss']['by_token']:.2f}",
                    f"{loss['unigram']:.2f}",
                    f"{100 * loss['under_unigram']:.0f} %",
                ]
            )
    return rows(
        ["toy", "domain", "loss, mean over texts (nats)", "over tokens", "unigram entropy (nats)", "under unigram"],
        body,
    )


def recall_table(results: dict[str, Any]) -> str:
    """Accuracy by pair count."""
    pairs = list(next(iter(results.values()))["recall"])
    body = [[name, *(share(found["recall"][number]) for number in pairs)] for name, found in results.items()]
    return rows(["toy", *(f"{number} pairs" for number in pairs)], body)


def carrier_table(results: dict[str, Any]) -> str:
    """Recall with parts zeroed."""
    body = []
    for name, found in results.items():
        for zeroed, accuracy in found["carriers"].items():
            body.append([name, zeroed, *(share(value) for value in accuracy.values())])
    pairs = list(next(iter(results.values()))["carriers"]["none"])
    return rows(["toy", "zeroed", *(f"{number} pairs" for number in pairs)], body)


def draft_table(results: dict[str, Any]) -> str:
    """Teacher-forced agreement of the first draft, and of its two controls."""
    body = []
    for name, found in results.items():
        for domain, draft in found["drafts"].items():
            line = [name, domain, share(draft["agreement"])]
            for control in ("strangers", "shuffled"):
                line += [share(draft[control]), f"{draft[f'over {control}']:.1f}"]
            body.append(line)
    return rows(["toy", "domain", "agreement", "strangers' states", "ratio", "shuffled states", "ratio"], body)


def routing_lines(results: dict[str, Any]) -> str:
    """Use and specialisation of the experts."""
    found = results["toy-moe"]["routing"]
    layers = len(next(iter(found["specialisation"].values())))
    body = [
        [name.replace("_", " "), *(f"{value:.3g}" for value in values)]
        for name, values in found["specialisation"].items()
    ]
    used = (
        f"Of {found['experts']} experts a layer, {found['never used']} were never used. An expert's share of slots is "
        f"{100 * found['smallest share']:.1f} % to {100 * found['largest share']:.1f} %; even is "
        f"{100 / found['experts']:.2f} %.\n\n"
    )
    return used + rows(["by layer", *map(str, range(layers))], body)


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
        for (name, found), color, style in zip(curves.items(), ("#009E73", "#CC79A7"), ("-", "--"), strict=True):
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
    for (name, found), color, style in zip(results.items(), ("#009E73", "#CC79A7"), ("-", "--"), strict=True):
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


def trained(here: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and loss curves of each toy: of the trainings in this folder, or those kept here of the shipped files."""
    if not folder.is_dir():
        return json.loads((here / "recipes.json").read_text()), json.loads((here / "losses.json").read_text())
    recipes = {each.parent.name: json.loads(each.read_text()) for each in sorted(folder.glob("*/recipe.json"))}
    logs = {name: (folder / name / "losses.jsonl").read_text().splitlines() for name in recipes}
    return recipes, {name: thinned([json.loads(line) for line in lines]) for name, lines in logs.items()}


def main() -> None:
    here = Path(__file__).parent
    recipes, curves = trained(here, here.parents[1] / "runs" / "toy-trainings")
    results = {}
    for run in ql.experiments.find(ql.experiments.plan(here))["name"]:
        facts = ql.experiments.facts(run)
        name = facts["parameters"]["checkpoint"]
        kept = Path(ql.experiments.store_at().url) / facts["folder"] / "datasets" / "results.nc"
        results[name] = json.loads(xr.load_dataset(kept).attrs["json"]) | {"recipe": recipes[name]}
    for name, content in (("recipes", recipes), ("losses", curves)):
        (here / f"{name}.json").write_text(json.dumps(content) + "\n")
    write_report(here, results, curves)


if __name__ == "__main__":
    main()
