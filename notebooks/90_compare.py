# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare runs
#
# An experiment is a folder with a `spec.yaml` and a notebook. `qwenlab run` runs the notebook once for every point of
# the spec's sweep and keeps each run in a **store**: the executed notebook, metrics, datasets, figures, and the facts
# that the numbers depend on. This notebook lists the runs in a store and compares them.
#
# [The glossary](../docs/glossary.md) defines the terms. [00_tour](00_tour.py) shows where such numbers come from.

# %% tags=["parameters"]
store: str | None = None  # a folder, or an address such as "s3://bucket/runs"; None: this notebook makes a small one
experiment: str | None = None  # None: the latest
metric: str | None = None  # None: the first in the spec
out: str | None = None  # folder for the figures; None saves nothing

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
# Without the parameter `store`, this cell makes a small one in a temporary folder. Its experiment reads the
# beginnings of prose texts with `toy-moe`, at two lengths and with two seeds that draw the texts. The spec has the
# question, the sweep, and the metrics that each run must record, with units:

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
# ## Find runs
#
# `ql.experiments.find` returns one row per run: finished runs, unless `state` says otherwise. `where` takes an SQL
# expression over the columns, such as `'"params.max_tokens" > 100 AND seed = 0'`. The columns `metrics.…` are means
# over the labels of a metric; `folder` is the run's place in the store.

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
# `ql.experiments.metrics` is a tidy table: one row per value, with columns for its labels and for the parameters that
# differ between runs. Here are the first three values of each run.

# %%
values = ql.experiments.metrics(experiment, metric, store=store)
values.groupby("name", sort=False).head(3)

# %% [markdown]
# Each dot is the mean of one run over the labels of the metric; lines go through the means over seeds. The spread of
# the dots of one setting is the effect of the seed; with few seeds it is not an interval.

# %%
across, *others = varied or ["seed"]
if found[across].dtype.kind not in "iuf" or found[across].isna().any():
    found[across] = found[across].astype(str)
means = values.groupby(["name", "seed"], sort=False)["value"].mean().reset_index(["seed"])
means = means.join(found.set_index("name")[varied])
settings = sorted(means[across].unique())


@ql.plots.style()
def by_setting():
    """One colour for each combination of the other parameters."""
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
    "by_setting", by_setting(), f"{metric} by {across.removeprefix('params.')}: a dot per run, a line of their means."
)

# %% [markdown]
# ## Two runs
#
# `ql.experiments.compare` shows how the facts of two runs differ and how far each metric moved. Here it compares the
# oldest run with the first that differs in that parameter but not in its seed.

# %%
old = found.iloc[0]
other = found[(found[across].astype(str) != str(old[across])) & ((found["seed"] == old["seed"]) | (across == "seed"))]
new = other.iloc[0] if len(other) else None
compared = None if new is None else ql.experiments.compare(old["name"], new["name"], store=store)
compared.facts if compared else "nothing to compare: no two runs differ in one parameter only"

# %%
compared.metrics.set_index("metric") if compared else None

# %% [markdown]
# **The interval.** A spec can name one dimension of a metric as its `pairs`, such as texts. Both runs measured each
# pair, so the difficulty of a text cancels in the difference. The interval is a bootstrap of the mean difference
# (10,000 resamples, seed 0), with percentiles that are expanded for few pairs. With *m* metrics its level is
# 100 − 5/*m* % (Bonferroni), so all intervals of one comparison hold together at 95 %. It covers other pairs like
# these, but not other seeds. A metric without pairs has one difference and no interval: `moved` is then unknown.

# %%
if compared:
    lines = [
        f"`{row.metric}` went from {row.old:.4g} to {row.new:.4g} {row.units}: {row.difference:+.3g}"
        + (
            ", without pairs, so without an interval."
            if np.isnan(row.low)
            else f" [{row.low:+.3g}, {row.high:+.3g}] at {100 - 5 / len(compared.metrics):.4g} %, over {row.n} of "
            f"`{row.unit}`: **{'beyond' if row.moved else 'within'} noise**."
        )
        for row in compared.metrics.itertuples()
    ]
    display(Markdown("\n\n".join(lines)))

# %% [markdown]
# The differences that are resampled:

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
    axes.axhline(row["difference"], color="#009E73", label="mean")
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
# `ql.experiments.datasets` joins a dataset of all runs along a new dimension `run`. Labels must be the same in every
# run: a mismatch is an error, and no label is dropped.

# %%
kept = Path(store, found["folder"].iloc[0], "datasets")
names = sorted(file.stem for file in kept.glob("*.nc"))
joined = ql.experiments.datasets(names[0], experiment, store=store) if names else "these runs have no dataset here"
joined

# %%
if names == ["reach"]:
    by_run = joined["distance"].mean("head").set_index(run=["params.max_tokens", "seed"])
    print("attention distance (token), mean over heads: a row per run, a column per layer")
    display(by_run.to_pandas())

# %% [markdown]
# ## Nightly comparison
#
# `qwenlab runs diff A B --exit-code` does the same on the command line, for two runs or for two stores, where it
# pairs runs with the same parameters and seed. It exits with 1 if any metric moved beyond noise (or moved at all, if
# it has no interval). So a nightly job with yesterday's store as A and today's as B fails if the numbers change, and
# prints which. `qwenlab runs report EXPERIMENT` writes one HTML page of an experiment.

# %%
notebook.save()
