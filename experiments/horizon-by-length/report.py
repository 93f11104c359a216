"""Write REPORT.md and its figures from the finished runs in the store."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.experiments.report.tables import interval, wide

REPORT = ql.experiments.ExperimentReport(Path(__file__).parent)
DELTANET, ATTENTION = "linear_attention", "full_attention"
TOY, CONTEXT = "params.checkpoint", "params.context"
TRAINED = 256  # tokens: the longest that the toys were trained on
FULL = 32  # directions: the rank of a full state
KINDS = dict(enumerate(ql.anatomy("toy-moe").layer_types))  # of both toys


def by_head(name: str) -> pd.DataFrame:
    """A metric by head, with layer and kind."""
    values = REPORT.metric(name)
    layer = values["head"].str.partition(".")[0].astype(int)
    return values.assign(layer=layer, kind=layer.map(KINDS))


def with_even(values: pd.DataFrame, even: pd.DataFrame, of: str, *more: str) -> pd.DataFrame:
    """By context, one number (`of` the heads) for each kind and text, and that of even weights."""
    both = pd.concat([values, even.assign(kind="even weights", text="any")])
    by = [TOY, *more, "kind", "text"]
    return in_contexts(both.groupby([*by, CONTEXT, "seed"])["value"].agg(of), *by)


def in_contexts(values: pd.Series, *by: str) -> pd.DataFrame:
    """A row for each label, a column for each context: the interval over seeds."""
    names = [name.removeprefix("params.") for name in by]
    return wide(values.reset_index(), *names, along="context", heading="{:,} tokens", cell=interval)


def growth(values: pd.Series) -> pd.DataFrame:
    """Slope of log value by log context, from each context to the next."""
    table = np.log(values.unstack(CONTEXT))
    context = np.log(table.columns.to_numpy(float))
    steps = table.diff(axis="columns").iloc[:, 1:] / np.diff(context)
    steps.columns = pd.Index([f"{a:,} to {b:,}" for a, b in zip(table.columns, table.columns[1:], strict=False)])
    return steps.rename_axis("step", axis="columns").stack().rename("value").reset_index()


def growths(nine: pd.DataFrame, even: pd.DataFrame) -> pd.DataFrame:
    """Growth of the horizon with the context: of the median and the farthest head, and of even weights."""
    keys = [TOY, CONTEXT, "seed"]
    deltanet, attention = (nine[nine["kind"] == kind].groupby(keys)["value"] for kind in (DELTANET, ATTENTION))
    found = {
        "DeltaNet, median head": deltanet.median(),
        "DeltaNet, farthest head": deltanet.max(),
        "attention, median head": attention.median(),
        "even weights": even[even["share"] == 0.9].groupby(keys)["value"].first(),
    }
    steps = pd.concat([growth(values).assign(of=name) for name, values in found.items()])
    return wide(steps, "checkpoint", "of", along="step", cell=interval)


def following(nine: pd.DataFrame) -> pd.DataFrame:
    """How many heads' horizons grow by more than half as fast as the context."""
    heads = growth(nine.groupby([TOY, "kind", "head", CONTEXT, "seed"])["value"].first().clip(lower=1))
    number = heads.assign(value=heads["value"] > 0.5).groupby([TOY, "kind", "seed", "step"], sort=False)["value"].sum()
    return wide(number.astype(float).reset_index(), "checkpoint", "kind", along="step", cell=interval)


def order(horizon: pd.DataFrame) -> pd.DataFrame:
    """Horizon over shuffled text by that over prose, by layer and context: geometric mean over heads."""
    nine = horizon[horizon["share"] == 0.9].assign(value=lambda each: np.log(each["value"].clip(lower=1)))
    by = [TOY, "layer", "kind"]
    logs = nine.pivot_table(index=[*by, CONTEXT, "seed", "head"], columns="text", values="value")
    ratio = (logs["shuffled"] - logs["prose"]).groupby([*by, CONTEXT, "seed"]).mean()
    return in_contexts(np.exp(ratio).rename("value"), *by)


def by_octave(name: str) -> pd.DataFrame:
    """A statistic of states by octave of position: each octave from the shortest context, where it is met most."""
    values = REPORT.metric(name).sort_values(CONTEXT, kind="stable")
    return values.drop_duplicates([TOY, "seed", "text", "layer", "position_bin"])


def states(rank: pd.DataFrame) -> pd.DataFrame:
    """Effective rank by octave and layer, and its growth once the text is longer than what the toys were trained on."""
    prose = rank[rank["text"] == "prose"].set_index([TOY, "layer", "seed", "position_bin"])["value"].unstack()
    table = {f"{a:,} to {2 * a - 1:,}": prose[a] for a in (8, 32, TRAINED // 2, TRAINED, 2048)}
    table["growth an octave, from 128"] = np.log2(prose[2048] / prose[TRAINED // 2]) / np.log2(2048 / (TRAINED // 2))
    columns = {name: column.groupby([TOY, "layer"]).agg(interval) for name, column in table.items()}
    return pd.DataFrame(columns).rename_axis(["checkpoint", "layer"])


def saturated(*named: pd.DataFrame, share: float = 0.9) -> pd.DataFrame:
    """By layer: where the first octave begins whose mean is so much of the largest octave's."""
    columns = {}
    for values in named:
        for text in ("prose", "shuffled"):
            here = values[values["text"] == text].groupby([TOY, "layer", "position_bin"])["value"].mean().unstack()
            at = here.columns[(here.to_numpy() >= share * here.max(axis="columns").to_numpy()[:, None]).argmax(axis=1)]
            columns[f"{values['metric'].iloc[0]}, {text}"] = pd.Series(at, here.index)
    return pd.DataFrame(columns).rename_axis(["checkpoint", "layer"])


@ql.plots.style()
def reach_figure(nine: pd.DataFrame, even: pd.DataFrame, mass: pd.DataFrame) -> Figure:
    """Horizons of all heads by context; and mass within a distance, by context, of one toy."""
    drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    limit = even[even["share"] == 0.9].groupby(CONTEXT)["value"].first()
    for axes, toy in ((left, "toy-dense"), (middle, "toy-moe")):
        here = nine[nine[TOY] == toy]
        for kind in (DELTANET, ATTENTION):
            heads = here[here["kind"] == kind].groupby([CONTEXT, "head"])["value"].mean().unstack()
            axes.plot(heads.index, heads, color=ql.plots.COLOURS[kind], alpha=0.35, linewidth=0.8)
            median = here[here["kind"] == kind].groupby(CONTEXT)["value"].median()
            label = f"{ql.plots.LABELS[kind]}, median head"
            axes.plot(median.index, median, color=ql.plots.COLOURS[kind], linewidth=2.2, label=label)
        axes.plot(limit.index, limit, ":", color="black", label="even weights")
        axes.set_yscale("symlog", base=2, linthresh=1, linscale=0.5)
        axes.set(
            title=f"90 % of the mass, {toy}", xlabel="context (tokens)", ylabel="within (tokens)", ylim=(-0.2, 4096)
        )
        _tokens(axes, limit.index, y=(0, 1, 4, 16, 64, 256, 1024, 4096))
        axes.legend(fontsize="small", loc="upper left")
    contexts = limit.index.to_numpy()
    for kind in (DELTANET, ATTENTION):
        here = mass[(mass[TOY] == "toy-moe") & (mass["text"] == "prose") & (mass["mixer_kind"] == kind)]
        for context, alpha in zip(contexts, np.linspace(0.3, 1, len(contexts)), strict=True):
            shares = here[here[CONTEXT] == context].groupby("distance_bin")["value"].mean().cumsum()
            ends = np.append(shares.index[1:], context) - 1  # the last distance of each bin
            label = f"{ql.plots.LABELS[kind]}, {context:,} tokens"
            right.plot(ends, shares, color=ql.plots.COLOURS[kind], alpha=alpha, label=label)
    right.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
    right.set(title="Mass within a distance, toy-moe", xlabel="distance (tokens)", ylabel="share of the mass")
    right.set(xlim=(-0.1, 4500), ylim=(0, 1.02))
    _tokens(right, (0, 1, 4, 16, 64, 256, 1024, 4096))
    right.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


@ql.plots.style()
def states_figure(rank: pd.DataFrame) -> Figure:
    """Effective rank along a text, by layer, with the text as it is and shuffled."""
    drawn, grid = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
    layers = sorted(rank["layer"].unique())
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    for axes, toy in zip(grid, ("toy-dense", "toy-moe"), strict=True):
        for text, line in (("prose", "-"), ("shuffled", "--")):
            here = rank[(rank[TOY] == toy) & (rank["text"] == text) & (rank["position_bin"] > 0)]
            means = here.groupby(["layer", "position_bin"])["value"].mean().unstack("layer")
            for layer, colour in zip(layers, shades, strict=True):
                label = f"layer {layer}" if line == "-" else None
                axes.plot(means.index * 2**0.5, means[layer], line, color=colour, linewidth=1.2, label=label)
        axes.axvline(TRAINED, color="0.6", linewidth=0.8)
        axes.axhline(FULL, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(title=toy, xlabel="position (tokens)", ylim=(0.9, 40))
        _tokens(axes, (1, 4, 16, 64, 256, 1024, 4096), y=(1, 2, 4, 8, 16, 32))
    grid[0].set(ylabel="effective rank (directions)")
    grid[0].annotate("full", (1.5, FULL), color="0.3", va="bottom", fontsize="small")
    grid[0].annotate(f"trained up to {TRAINED} ", (TRAINED, 1), color="0.4", ha="right", va="bottom", fontsize="small")
    grid[0].plot([], [], "--", color="0.4", label="shuffled")
    grid[0].legend(fontsize="x-small", ncols=2, loc="upper left", bbox_to_anchor=(0, 0.92))
    return drawn


def _tokens(axes: Axes, x: pd.Index | tuple[int, ...], y: tuple[int, ...] = ()) -> None:
    """Integer ticks."""
    if axes.get_xscale() != "symlog":
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(x), [f"{each:,}" for each in x])
    if y:
        axes.set_yticks(y, [f"{each:,}" for each in y])
    axes.minorticks_off()


if __name__ == "__main__":
    horizon, even, first = by_head("horizon"), REPORT.metric("even_horizon"), by_head("first_mass")
    entropies = by_head("entropy"), REPORT.metric("even_entropy")
    made_of, even_made_of = (each.assign(value=np.exp(each["value"])) for each in entropies)
    nine = horizon[(horizon["share"] == 0.9) & (horizon["text"] == "prose")]
    rank, norm = by_octave("effective_rank"), by_octave("norm")
    REPORT.figure("reach", reach_figure(nine, even, REPORT.metric("mass_by_distance")))
    REPORT.figure("states", states_figure(rank))
    REPORT.write(
        horizons=with_even(horizon, even, "median", "share"),
        growths=growths(nine, even),
        following=following(nine),
        order=order(horizon),
        made_of=with_even(made_of, even_made_of, "median"),
        first=with_even(first[first["text"] == "prose"], REPORT.metric("even_first_mass"), "max"),
        states=states(rank),
        saturated=saturated(rank, norm),
    )
