"""Write REPORT.md and its figure from the finished runs in the store."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import qwenlab as ql

REPORT = ql.experiments.ExperimentReport(Path(__file__).parent)
TOY, CONTEXT = "params.checkpoint", "params.context"


@ql.plots.style()
def figure(seconds: pd.DataFrame, horizons: pd.DataFrame) -> Figure:
    """Time of a mixer and horizon against context, by kind and toy."""
    drawn, grid = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    prefill, decode = (seconds[seconds["phase"] == phase] for phase in ("prefill", "decode"))
    contexts = sorted(seconds[CONTEXT].unique())
    for axes, values, title, unit in (
        (grid[0], prefill, "Prefill: time of one mixer", "µs a token"),
        (grid[1], decode, "Decode: time of one mixer", "µs a token"),
        (grid[2], horizons, "Horizon", "tokens"),
    ):
        for toy, line in zip(sorted(seconds[TOY].unique()), ("-", "--"), strict=False):
            for kind in ("linear_attention", "full_attention"):
                here = values[(values["kind"] == kind) & (values[TOY] == toy)].groupby(CONTEXT)["value"].median()
                look = dict(color=ql.plots.COLOURS[kind], label=f"{ql.plots.LABELS[kind]}, {toy}")
                axes.plot(here.index, here, line, marker="o", markersize=3, **look)
        if axes is grid[2]:
            axes.plot(contexts, [each / 2 for each in contexts], ":", color="0.5")
        axes.set(title=title, ylabel=unit, xlabel="context (tokens)", xscale="log")
        axes.set_xticks(contexts, [f"{each:,}" for each in contexts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    grid[2].annotate("half of the context", (contexts[-1], contexts[-1] / 2), color="0.4", va="bottom", ha="right")
    grid[2].set(yscale="log", ylim=(1, None))
    grid[0].legend(fontsize="small")
    return drawn


if __name__ == "__main__":
    life, distance = REPORT.metric("half_life"), REPORT.metric("attention_distance")
    horizons = pd.concat([life.assign(kind="linear_attention"), distance.assign(kind="full_attention")])
    seconds = REPORT.metric("seconds", times=1e6).rename(columns={"mixer_kind": "kind"})
    REPORT.figure("by_context", figure(seconds, horizons))
    REPORT.write(horizons=horizons)
