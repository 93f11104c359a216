"""Write REPORT.md and its figure from the finished runs in the store."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import qwenlab as ql

REPORT = ql.experiments.ExperimentReport(Path(__file__).parent)
TEXTS = "params.texts_per_domain"


@ql.plots.style()
def figure() -> Figure:
    """Information on the domain by layer with the shuffled control, a panel for each number of texts."""
    numbers = sorted(REPORT.metric("information")[TEXTS].unique())
    drawn, grid = plt.subplots(1, len(numbers), figsize=(10, 3.2), sharey=True, layout="constrained")
    for name, colour, label in (
        ("information", "#009E73", "domains as they are"),
        ("shuffled", "0.6", "domains shuffled over texts"),
    ):
        values = REPORT.metric(name).groupby([TEXTS, "layer"])["value"].agg(["median", "min", "max"])
        for axes, texts in zip(grid, numbers, strict=True):
            seeds = values.loc[texts]
            axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=colour, alpha=0.25, linewidth=0)
            axes.plot(seeds.index, seeds["median"], color=colour, marker="o", markersize=3, label=label)
            axes.set(title=f"{texts} texts a domain", xlabel="layer")
    grid[0].set(ylabel="information on the domain (bits)", ylim=(0, None))
    grid[0].legend(fontsize="small")
    return drawn


if __name__ == "__main__":
    REPORT.figure("information", figure())
    REPORT.write()
