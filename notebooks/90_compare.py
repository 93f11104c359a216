# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Runs side by side
#
# An experiment is a folder with a `spec.yaml` and a notebook. `qwenlab run` runs the notebook once for every point of
# the spec's sweep and keeps each run in a **store**: its executed notebook, its metrics, its datasets and figures, and
# the facts that its numbers depend on. This notebook asks a store what it holds, and compares runs in it.
#
# Words used for a number are defined in [the glossary](../docs/glossary.md). [00_tour](00_tour.py) shows where such
# numbers come from.

# %% tags=["parameters"]
store: str | None = None  # a folder, or an address such as "s3://bucket/runs"; None: a small one is made here
experiment: str | None = None  # None: the one that was run last
metric: str | None = None  # None: the first that the experiment's spec declares
out: str | None = None  # folder for the figures; None keeps nothing

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

import qwenlab as ql

notebook = ql.notebook.start(out, digits=4)


# %% [markdown]
# ## A store
#
# If no store was named, a small one is made now, in a folder that goes when this kernel ends. Its experiment lets
# `toy-moe`, a model that ships, read the beginnings of prose texts: two lengths, and two seeds that draw which texts.
# The spec says what is asked, what differs between the runs, and which metrics each run must record, with units:

# %%
SPEC = """\
question: How much does a token of prose gain from more text before it?
notebook: reading.py
sweep:
  grid:
    max_tokens: [16, 128]
seeds: [0, 1]
metrics:
  loss:
    units: nat/token
    over: [text]
    pairs: text
    better: lower
    meaning: Next-token loss of each text, the mean over the tokens read.
  distance:
    units: token
    over: [layer]
    meaning: Mean attention distance of each attention layer, the mean over its heads.
"""

READING = """\
# %% tags=["parameters"]
max_tokens: int = 16  # read of each text
number: int = 10  # of texts
seed: int = 0  # draws the texts
checkpoint: str = "toy-moe"

# %%
import numpy as np
import torch

import qwenlab as ql

torch.set_num_threads(1)  # matrices this small gain nothing from more
ckpt = ql.open(checkpoint)
held_out = ql.tasks.texts("prose")
drawn = np.sort(np.random.default_rng(seed).choice(len(held_out), number, replace=False))

# %%
with ql.watch(ckpt, ql.probes.Attention(every=4)) as seen:
    texts = ql.tasks.text_task(ckpt, [held_out[text] for text in drawn], max_tokens=max_tokens)
    scores = ql.tasks.measure(ckpt, [texts])
reach = ql.stats.attention_distance(seen.recording())

# %%
ql.experiments.record(
    loss=scores["loss"].assign_coords(text=drawn),
    distance=reach["distance"].mean("head"),
    datasets={"reach": reach},
    figures={"distance": ql.plots.attention_distance(reach)},
)
"""

if store is None:
    temporary = tempfile.TemporaryDirectory(prefix="qwenlab-compare-")
    folder = Path(temporary.name, "reading")
    folder.mkdir()
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "reading.py").write_text(READING)
    store = str(Path(temporary.name, "store"))
    result = ql.experiments.run(folder, store=store)
    assert result.complete, [outcome.reason for outcome in result.of("failed")]
    print(f"{len(result.outcomes)} runs in {result.seconds:.0f} s")

# %% [markdown]
# ## What it holds
#
# `ql.experiments.find` gives a row a run: only those that finished, unless `state` says otherwise. `where` takes an SQL
# expression over the columns, such as `'"params.max_tokens" > 100 AND seed = 0'`. The columns `metrics.…` are means
# over a metric's labels; `folder` is where in the store the run lies.

# %%
found = ql.experiments.find(experiment, store=store)
assert len(found), f"no finished run of {experiment or 'any experiment'} in {store}"
experiment = experiment or found["experiment"].iloc[-1]
found = found[found["experiment"] == experiment].dropna(axis="columns", how="all").reset_index(drop=True)
print("columns:", ", ".join(found.columns))

varied = [name for name in found if name.startswith("params.") and found[name].astype(str).nunique() > 1]
varied = [name for name in varied if name != "params.seed"]  # it has a column of its own
found.set_index("name")[["seed", *varied, "seconds", *(name for name in found if name.startswith("metrics."))]]

# %%
facts = ql.experiments.facts(found["name"].iloc[-1], store=store)
declared = facts["metrics"]
metric = metric or next(iter(declared))
units, dims, pairs = (declared[metric][key] for key in ("units", "over", "pairs"))
differ = [f"`{name.removeprefix('params.')}`" for name in varied] + ["the seed"] * (found["seed"].nunique() > 1)
Markdown(
    f"**{experiment}**: {facts['question']} Its {len(found)} finished runs differ in {', '.join(differ) or 'nothing'}. "
    f"The metric below is `{metric}` ({units}), recorded over {', '.join(dims) or 'nothing: one number a run'}. "
    f"{declared[metric]['meaning']}"
)

# %% [markdown]
# ## A metric, value by value
#
# `ql.experiments.metrics` is a tidy table: a row a value, a column a label, and the columns that differ
# between the runs. Here are the first three values of each run.

# %%
values = ql.experiments.metrics(experiment, metric, store=store)
values.groupby("name", sort=False).head(3)

# %% [markdown]
# The figure has a dot for each run, its mean over the metric's labels, and a line through the means over seeds. How
# far the dots of one setting lie apart is what a seed alone changes; with a few seeds it is no interval.

# %%
across, *others = varied or ["seed"]
if found[across].dtype.kind not in "iuf" or found[across].isna().any():
    found[across] = found[across].astype(str)
means = values.groupby(["name", "seed"], sort=False)["value"].mean().reset_index(["seed"])
means = means.join(found.set_index("name")[varied])
settings = sorted(means[across].unique())


@ql.plots.style()
def by_setting():
    """One colour a combination of the other parameters."""
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    groups = means.groupby(others, sort=False, dropna=False) if others else [((), means)]
    for key, group in groups:
        named = ", ".join(f"{name.removeprefix('params.')} = {value}" for name, value in zip(others, key, strict=True))
        places = [settings.index(value) for value in group[across]]
        (line,) = axes.plot(group.groupby(across)["value"].mean().reindex(settings).values, label=named)
        axes.plot(places, group["value"], "o", color=line.get_color())
    axes.set_xticks(range(len(settings)), [str(value) for value in settings])
    axes.set(xlabel=across.removeprefix("params."), ylabel=f"{metric} ({units})", xlim=(-0.4, len(settings) - 0.6))
    if others:
        axes.legend()
    return figure


notebook.show(
    "by_setting", by_setting(), f"{metric} by {across.removeprefix('params.')}: a dot a run, a line of their means."
)

# %% [markdown]
# ## Two runs
#
# `ql.experiments.compare` sets one run against another: what differs in their facts, and how far each metric moved.
# Here it is the oldest run, and the first that differs from it in that parameter but not in its seed.

# %%
old = found.iloc[0]
other = found[(found[across].astype(str) != str(old[across])) & ((found["seed"] == old["seed"]) | (across == "seed"))]
new = other.iloc[0] if len(other) else None
compared = None if new is None else ql.experiments.compare(old["name"], new["name"], store=store)
compared.facts if compared else "nothing to compare: no two runs differ so"

# %%
compared.metrics.set_index("metric") if compared else None

# %% [markdown]
# **What the interval is.** A spec can name one of a metric's dimensions as its `pairs`, such as texts. Each pair was
# measured in both runs, so its difference is free of how hard it is. These differences are drawn again with
# replacement, as many as there are, 10,000 times (seed 0); the interval holds the middle of the means of those draws,
# widened for few pairs (bootstrap with expanded percentiles). How much of them is chosen so that all intervals of one
# comparison together hold at 95 %:
# with *m* metrics, each is at 100 − 5/*m* % (Bonferroni). It says how far the mean difference would go with other pairs
# like these. It says nothing of other seeds. A metric without pairs has one difference and no interval: `moved` is
# then unknown.

# %%
if compared:
    lines = [
        f"`{row.metric}` went from {row.old:.4g} to {row.new:.4g} {row.units}: {row.difference:+.3g}"
        + (
            ", with nothing to tell noise by."
            if np.isnan(row.low)
            else f" [{row.low:+.3g}, {row.high:+.3g}] at {100 - 5 / len(compared.metrics):.4g} %, over {row.n} of "
            f"`{row.unit}`: **{'beyond' if row.moved else 'within'} noise**."
        )
        for row in compared.metrics.itertuples()
    ]
    display(Markdown("\n\n".join(lines)))

# %% [markdown]
# What is drawn from are these differences:

# %%
paired = []
if compared and pairs and metric in set(compared.metrics["metric"]):
    by_pair = values.groupby(["name", pairs])["value"].mean().unstack("name")
    paired = (by_pair[new["name"]] - by_pair[old["name"]]).dropna().sort_values()


@ql.plots.style()
def differences():
    """Each pair's difference, with the mean of all and its interval."""
    row = compared.metrics.set_index("metric").loc[metric]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.axhline(0, color="0.6", linewidth=1)
    axes.axhspan(row["low"], row["high"], alpha=0.2, linewidth=0, label="interval of the mean")
    axes.axhline(row["difference"], color="C0", label="mean")
    axes.plot(range(len(paired)), paired, "o", color="0.2", label=f"one {pairs}")
    axes.set_xticks(range(len(paired)), [str(label) for label in paired.index], rotation=90 if len(paired) > 12 else 0)
    axes.set(xlabel=f"{pairs}, in the order of the differences", ylabel=f"difference in {metric} ({units})")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if len(paired) > 1:
    notebook.show(
        "differences", differences(), f"Difference in {metric} of each {pairs} between the two runs, and their mean."
    )

# %% [markdown]
# ## Datasets, joined
#
# A number answers the question; the dataset behind it answers the next one. `ql.experiments.datasets` puts those of all
# runs side by side along a new dimension `run`. Labels must be the same in every run: a mismatch is an error.

# %%
kept = Path(store, found["folder"].iloc[0], "datasets")
names = sorted(file.stem for file in kept.glob("*.nc"))
joined = ql.experiments.datasets(names[0], experiment, store=store) if names else "these runs kept no dataset here"
joined

# %%
if names == ["reach"]:
    by_run = joined["distance"].mean("head").set_index(run=["params.max_tokens", "seed"])
    print("attention distance (token), the mean over heads: a row a run, a column a layer")
    display(by_run.to_pandas())

# %% [markdown]
# ## Every night
#
# `qwenlab runs diff A B --exit-code` does the same on the command line, for two runs or for two stores, whose runs of
# the same parameters and seed it sets beside each other. It exits with 1 when any metric moved beyond noise (or moved
# at all, where there is nothing to tell noise by): a nightly job that keeps yesterday's store as A and runs into B
# fails when the numbers change, and prints which. `qwenlab runs report EXPERIMENT` writes one HTML page of it all.

# %%
notebook.save()
