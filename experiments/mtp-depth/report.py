"""Write REPORT.md and its figures from the finished runs in the store."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import qwenlab as ql

REPORT = ql.experiments.ExperimentReport(Path(__file__).parent)
DOMAINS = {
    "code": ("#0072B2", "o"),
    "prose": ("#E69F00", "s"),
    "arithmetic": ("#009E73", "^"),
    "recall": ("#CC79A7", "D"),
}


@ql.plots.style()
def figure(name: str, ylabel: str, *, even: bool = False) -> Figure:
    """A metric by depth: a line for each domain, a panel for each checkpoint."""
    medians = REPORT.metric(name).groupby(["params.checkpoint", "params.domain", "depth"])["value"].median()
    checkpoints = medians.index.unique("params.checkpoint")
    drawn, grid = plt.subplots(
        1, len(checkpoints), figsize=(8.5, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, checkpoint in zip(grid[0], checkpoints, strict=True):
        for domain, (colour, mark) in DOMAINS.items():
            line = medians[checkpoint, domain]
            axes.plot(line.index, line, color=colour, marker=mark, markersize=4, label=domain)
        if even:
            axes.axhline(1, color="0.5", linewidth=0.8, linestyle="--")
        axes.set(title=checkpoint, xlabel="drafts per round (depth)")
    grid[0][0].set(ylabel=ylabel)
    grid[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


if __name__ == "__main__":
    REPORT.figure("acceptance_length", figure("acceptance_length", "acceptance length (tokens per round)"))
    REPORT.figure("speedup", figure("speedup", "predicted speed-up (times plain decoding)", even=True))
    REPORT.write()
