"""Write REPORT.md and its figures from the finished runs in the store."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.experiments.report.tables import markdown, spread

HERE = Path(__file__).parent
PLAN = ql.experiments.plan(HERE)
DOMAIN, CHECKPOINT = "params.domain", "params.checkpoint"
COLOURS = {"code": "#0072B2", "prose": "#E69F00", "arithmetic": "#009E73", "recall": "#CC79A7"}
MARKS = {"code": "o", "prose": "s", "arithmetic": "^", "recall": "D"}


def table(name: str, along: str) -> pd.DataFrame:
    """One row a checkpoint and domain, one column a depth or a place in the draft."""
    wide = ql.experiments.metrics(PLAN, name).groupby([CHECKPOINT, DOMAIN, along])["value"].agg(spread).unstack()
    wide.index.names = ["checkpoint", "domain"]
    wide.columns = [f"{along} {int(each)}" for each in wide.columns]
    return wide


def singles(*names: str) -> pd.DataFrame:
    """One row a checkpoint and domain, one column a metric."""
    columns = {}
    for name in names:
        columns[name] = ql.experiments.metrics(PLAN, name).groupby([CHECKPOINT, DOMAIN])["value"].agg(spread)
    wide = pd.DataFrame(columns)
    wide.index.names = ["checkpoint", "domain"]
    return wide


@ql.plots.style()
def figure(name: str, along: str, ylabel: str, *, even: bool = False) -> Figure:
    """A metric by depth, a line a domain, a panel a checkpoint."""
    values = ql.experiments.metrics(PLAN, name)
    checkpoints = sorted(values[CHECKPOINT].unique())
    drawn, grid = plt.subplots(
        1, len(checkpoints), figsize=(8.5, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, checkpoint in zip(grid[0], checkpoints, strict=True):
        here = values[values[CHECKPOINT] == checkpoint]
        for domain, colour in COLOURS.items():
            line = here[here[DOMAIN] == domain].groupby(along)["value"].median()
            axes.plot(line.index, line, color=colour, marker=MARKS[domain], markersize=4, label=domain)
        if even:
            axes.axhline(1, color="0.5", linewidth=0.8, linestyle="--")
        axes.set(title=checkpoint, xlabel="drafts a round (depth)")
    grid[0][0].set(ylabel=ylabel)
    grid[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def main() -> None:
    runs = ql.experiments.find(PLAN)
    if runs.empty:
        raise SystemExit(f"No finished run in the store: run `qwenlab run {HERE.parent.name}/{HERE.name}` first.")
    facts = ql.experiments.facts(runs["name"].iloc[0])
    (HERE / "figures").mkdir(exist_ok=True)
    length = figure("acceptance_length", "depth", "acceptance length (tokens a round)")
    length.savefig(HERE / "figures" / "acceptance_length.png", dpi=150)
    speedup = figure("speedup", "depth", "predicted speed-up (times plain decoding)", even=True)
    speedup.savefig(HERE / "figures" / "speedup.png", dpi=150)
    found = {
        "LENGTH": table("acceptance_length", "depth"),
        "EFFICIENCY": table("draft_efficiency", "depth"),
        "CONDITIONAL": table("conditional", "draft"),
        "FORCED": table("teacher_forced", "draft"),
        "SPEEDUP": table("speedup", "depth"),
        "SINGLES": singles("threshold_length", "threshold_efficiency", "measured_speedup", "lossless"),
    }
    text = (HERE / "report.md.in").read_text()
    for name, frame in found.items():
        text = text.replace(f"@{name}@", markdown(frame))
    text = text.replace("@RUNS@", str(len(runs)))
    text = text.replace("@VERSIONS@", ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    (HERE / "REPORT.md").write_text(text)


if __name__ == "__main__":
    main()
