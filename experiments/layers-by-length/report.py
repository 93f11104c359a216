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
KINDS = ("linear_attention", "full_attention")
WHO = ["params.checkpoint", "params.context"]


def by_context(values: pd.DataFrame, *names: str) -> pd.DataFrame:
    """One row for each of these labels, one column a context: the spread over seeds (and layers)."""
    table = values.groupby([*names, "params.context"])["value"].agg(spread).unstack()
    table.columns = [f"{context:,} tokens" for context in table.columns]
    return table.rename(index=ql.plots.LABELS).rename_axis(index=lambda name: name.removeprefix("params."))


@ql.plots.style()
def figure(seconds: pd.DataFrame, half_life: pd.DataFrame, distance: pd.DataFrame) -> Figure:
    """Time of a mixer and horizon against context, by kind and toy."""
    drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    horizons = {"linear_attention": half_life, "full_attention": distance}
    for toy, line in zip(sorted(seconds["params.checkpoint"].unique()), ("-", "--"), strict=False):
        for kind in KINDS:
            colour, label = ql.plots.COLOURS[kind], f"{ql.plots.LABELS[kind]}, {toy}"
            for axes, phase in ((left, "prefill"), (middle, "decode")):
                of_kind = seconds[(seconds["mixer_kind"] == kind) & (seconds["phase"] == phase)]
                plot(axes, 1e6 * of_toy(of_kind, toy), colour, line, label)
            plot(right, of_toy(horizons[kind], toy), colour, line, label)
    contexts = sorted(seconds["params.context"].unique())
    right.plot(contexts, [each / 2 for each in contexts], ":", color="0.5")
    right.annotate("half of the context", (contexts[-1], contexts[-1] / 2), color="0.4", va="bottom", ha="right")
    for axes, title, unit in (
        (left, "Prefill: time of one mixer", "µs a token"),
        (middle, "Decode: time of one mixer", "µs a token"),
        (right, "Horizon", "tokens"),
    ):
        axes.set(title=title, ylabel=unit, xlabel="context (tokens)", xscale="log")
        axes.set_xticks(contexts, [f"{each:,}" for each in contexts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    right.set(yscale="log", ylim=(1, None))
    left.legend(fontsize="small")
    return drawn


def of_toy(values: pd.DataFrame, toy: str) -> pd.Series:
    return values[values["params.checkpoint"] == toy].groupby("params.context")["value"].median()


def plot(axes: plt.Axes, values: pd.Series, colour: str, line: str, label: str) -> None:
    axes.plot(values.index, values, line, color=colour, label=label, marker="o", markersize=3)


def main() -> None:
    named = {name: ql.experiments.metrics(PLAN, name) for name in ("seconds", "flops", "cache")}
    horizons = {name: ql.experiments.metrics(PLAN, name) for name in ("half_life", "attention_distance")}
    runs = ql.experiments.find(PLAN)
    facts = ql.experiments.facts(runs["name"].iloc[0])
    (HERE / "figures").mkdir(exist_ok=True)
    figure(named["seconds"], *horizons.values()).savefig(HERE / "figures" / "by_context.png", dpi=150)

    microseconds = named["seconds"].assign(value=1e6 * named["seconds"]["value"])
    kilobytes = named["cache"].assign(value=named["cache"]["value"] / 2**10)
    together = pd.concat(
        [horizons["half_life"].assign(kind=KINDS[0]), horizons["attention_distance"].assign(kind=KINDS[1])]
    )
    text = (HERE / "report.md.in").read_text()
    for name, value in {
        "SECONDS": markdown(by_context(microseconds, "params.checkpoint", "phase", "mixer_kind")),
        "HORIZONS": markdown(by_context(together, "params.checkpoint", "kind")),
        "CACHE": markdown(by_context(kilobytes, "params.checkpoint", "store")),
        "RUNS": str(len(runs)),
        "MACHINE": f"{facts['machine']['processor']}, {facts['machine']['cores']} cores",
        "VERSIONS": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }.items():
        text = text.replace(f"@{name}@", value)
    (HERE / "REPORT.md").write_text(text)


if __name__ == "__main__":
    main()
