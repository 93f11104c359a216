"""Write REPORT.md and its figure from the finished runs in the store."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.experiments.report.tables import markdown, spread

HERE = Path(__file__).parent
PLAN = ql.experiments.plan(HERE)
TEXTS = "params.texts_per_domain"


def by_layer(name: str) -> pd.DataFrame:
    """One row a layer, one column a number of texts."""
    table = ql.experiments.metrics(PLAN, name).groupby(["layer", TEXTS])["value"].agg(spread).unstack()
    table.columns = [f"{texts} texts a domain" for texts in table.columns]
    return table


@ql.plots.style()
def figure() -> Figure:
    """Information on the domain by layer, beside the shuffled control, for each number of texts."""
    named = {name: ql.experiments.metrics(PLAN, name) for name in ("information", "shuffled")}
    numbers = sorted(named["information"][TEXTS].unique())
    drawn, grid = plt.subplots(1, len(numbers), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axes, texts in zip(grid, numbers, strict=True):
        for values, colour, label in zip(
            named.values(), ("#009E73", "0.6"), ("domains as they are", "domains shuffled over texts"), strict=True
        ):
            seeds = values[values[TEXTS] == texts].groupby("layer")["value"].agg(["median", "min", "max"])
            axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=colour, alpha=0.25, linewidth=0)
            axes.plot(seeds.index, seeds["median"], color=colour, marker="o", markersize=3, label=label)
        axes.set(title=f"{texts} texts a domain", xlabel="layer")
    grid[0].set(ylabel="information on the domain (bits)", ylim=(0, None))
    grid[0].legend(fontsize="small")
    return drawn


def main() -> None:
    runs = ql.experiments.find(PLAN)
    facts = ql.experiments.facts(runs["name"].iloc[0])
    (HERE / "figures").mkdir(exist_ok=True)
    figure().savefig(HERE / "figures" / "information.png", dpi=150)
    text = (HERE / "report.md.in").read_text()
    for name in ("information", "shuffled", "p_value", "load_variation", "switch_rate", "never_used"):
        text = text.replace(f"@{name.upper()}@", markdown(by_layer(name)))
    text = text.replace("@RUNS@", str(len(runs))).replace("@HASH@", runs["checkpoint_hash"].iloc[0][:19])
    text = text.replace("@VERSIONS@", ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    (HERE / "REPORT.md").write_text(text)


if __name__ == "__main__":
    main()
