# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does each part do? Ablations with controls
#
# Remove a part, and measure what the model can no longer do. The experiment is easy to run and easy to misread:
#
# * **Any damage hurts.** A higher loss without a layer says that something broke, not that this layer does the task. So
#   each ablation is compared with *random controls*: as much removed elsewhere.
# * **Texts differ.** So an ablation is compared with the intact model on the same text, and intervals are over texts.
# * **Among a hundred parts, some look important by chance.** So p-values are corrected for all parts and all tasks.
# * **A model that cannot do a task cannot lose it.** So each task has a chance level, and the intact model is
#   compared with it first.
#
# This notebook asks which mixers and MLPs of one checkpoint carry recall, and which carry plain text. An ablation
# is *significant* if its effect differs from 0 and exceeds that of its controls. Brackets are 95 % intervals over
# texts. [The glossary](../docs/glossary.md) defines every quantity. [The
# experiment](../experiments/functional-ablation/REPORT.md) covers more tasks and more parts.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 14  # texts of each task; with fewer than about a dozen nothing can be significant
max_tokens: int = 64  # tokens of each passage of prose and code
pairs: list[int] = [4, 16]  # pairs in each recall text; each is queried once
controls: int = 4  # random controls of each ablation; two or more show their spread
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording, the findings and the figures; None saves nothing

# %%
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import qwenlab as ql

notebook = ql.notebook.start(out)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %% [markdown]
# ## Parts
#
# `units` returns one ablation per part: here each mixer and each MLP alone, with its output set to zero, and all mixers
# of a kind together. An ablation only describes an edit; the model is unchanged.

# %%
kinds = {"linear_attention": "all DeltaNet", "full_attention": "all attention"}
mixers, mlps = ql.ablations.units(ckpt, "mixer"), ql.ablations.units(ckpt, "mlp")
whole = [replace(each, name=kinds[each.kind]) for each in ql.ablations.units(ckpt, "kind")]
parts = [*whole, *mixers, *mlps]
pd.DataFrame(
    [{"name": each.name, "intervention": each.intervention, "parameters": f"{each.parameters:,}"} for each in parts]
)

# %% [markdown]
# An edit acts inside a `with` block, on the plain model. An edit that matches nothing raises an error:

# %%
try:
    with ql.intervene(ckpt.model, ql.interventions.Zero("layers.*.mixre")):
        pass
except ql.errors.QwenlabError as error:
    print(type(error).__name__, error, sep="\n")

# %% [markdown]
# ## Tasks
#
# There are two kinds. *Plain text*: the loss on every token but the first. *Recall* (MQAR: Arora et al. 2023,
# [arXiv:2312.04927](https://arxiv.org/abs/2312.04927)): a text lists pairs of a letter and a digit and later queries
# them, so the answer is known and only the text before it contains it. Tasks use the checkpoint's own tokens and a
# seed.

# %%
recall = [ql.tasks.mqar(ckpt, pairs=each, count=texts_per_domain, name=f"recall of {each}") for each in pairs]
plain = []
for domain in ("prose", "code"):
    cut = ql.tasks.passages(ckpt, "\n".join(ql.tasks.texts(domain)), tokens=max_tokens, count=texts_per_domain)
    plain.append(ql.tasks.text_task(ckpt, cut, name=domain))
tasks = [*recall, *plain]
print(ckpt.tokenizer.decode(recall[0].tokens[0]))
tasks

# %% [markdown]
# ## Controls
#
# The controls of a mixer are other mixers, those of an MLP other MLPs. The controls of all mixers of a kind have as
# many *parameters* in other mixers and MLPs, within 10 %. If no other parts match, as with the large experts of an
# MoE, there is no control, and the results below say so.

# %%
matched = []
for each in whole:
    try:
        matched += ql.ablations.controls([each], [*mixers, *mlps], match="parameters", number=controls)
    except ql.errors.BadArgument as error:
        print(error)
for sort in (mixers, mlps):
    matched += ql.ablations.controls(sort, sort, number=controls)
print(len(matched), "controls, such as", *(f"\n  {each.name}" for each in matched[:: max(1, len(matched) // 4)]))

# %% [markdown]
# ## The sweep
#
# Every ablation reads every text, and one forward pass gives all scores. Layers below an edit are not run again:
# `layers_run` is the share of layers that ran. With `resume=FILE` an interrupted sweep resumes.

# %%
sweep = ql.ablations.sweep(ckpt, [*parts, *matched], tasks, batch_size=16)
print(
    f"{sweep.sizes['ablation']} ablations of {sweep.sizes['text']} texts; layers run: {sweep.attrs['layers_run']:.0%}"
)

# %% [markdown]
# Two checks. First, ablate the last mixer by hand, with full passes: the difference should be rounding error. Second,
# score the intact model again after the sweep: the difference must be exactly zero.

# %%
one = mixers[-1]
with ql.intervene(ckpt.model, *one.interventions):
    by_hand = ql.tasks.measure(ckpt, tasks, batch_size=16)
again = ql.tasks.measure(ckpt, tasks, batch_size=16)
print(f"{one.name}, loss by hand:", np.abs(by_hand["loss"] - sweep["loss"].sel(ablation=one.name)).values.max())
print("intact model, loss afterwards:", np.abs(again["loss"] - sweep["clean_loss"]).values.max())

# %% [markdown]
# ## What the intact model can do
#
# `above_chance` is the accuracy minus the accuracy of guessing. If its interval includes 0, the model has nothing to
# lose, and the accuracy under ablation means nothing. Plain text has no chance level.

# %%
loss, accuracy = (ql.stats.ablations(sweep, score=score) for score in ("loss", "accuracy"))
pd.DataFrame(
    {
        "texts": loss["texts"].values,
        "loss (nat/token)": loss["clean_loss"].values,
        "accuracy": accuracy["clean_accuracy"].values,
        "above chance": ql.notebook.intervals(accuracy, "above_chance", missing=""),
    },
    index=loss["task"].values,
)

# %% [markdown]
# ## The effect of each ablation
#
# The rise of the loss, by part and task. Each row has its own scale, with its maximum at the right: compare within a
# row, not within a column. Filled cells are *significant*; the others are underlined, however large.

# %%
notebook.show(
    "loss_map",
    ql.plots.ablation_map(loss),
    "Rise of the loss by ablated part and task: a column per layer, a panel per kind of part.",
)

# %% [markdown]
# The same for the accuracy of recall. Accuracy measures how much of the ability is lost; the loss also depends on
# confidence. A model that is confident and wrong has a large loss, and one that guesses has a small one.

# %%
recalled = accuracy.sel(task=[task.name for task in recall])
notebook.show(
    "recall_map",
    ql.plots.ablation_map(recalled),
    "Fall of the recall accuracy by ablated part: a column per layer, a panel per kind of part.",
)

# %% [markdown]
# ## Ranking, with its uncertainty
#
# Parts ranked by their effect on the hardest recall task. Grey strokes are the controls of each part: a mark among them
# means no larger effect than removing any other part. The right panel has simultaneous 95 % intervals of the ranks:
# parts with overlapping bars are tied.

# %%
hardest = recall[-1].name
notebook.show(
    "ranking",
    ql.plots.ablation_ranking(accuracy, hardest, most=20),
    f"Parts by the fall of the accuracy on {hardest}, with intervals, controls and ranks.",
)

# %%
table = ql.stats.ablation_table(accuracy, hardest).isel(ablation=slice(6))
effects = ["effect", "effect_above_controls"]
pd.DataFrame({name: ql.notebook.intervals(table, name) for name in effects}, index=table["ablation"].values)

# %%
tests = ["p_holm", "rank_low", "rank_high", "significant"]
table[tests].to_dataframe()[tests]

# %% [markdown]
# * `effect`: fall of the accuracy (intact minus ablated), paired by text.
# * `effect_above_controls`: the effect minus the mean effect of its controls. Its interval is wider, because the
#   controls are few and random.
# * `p_holm`: p-value of a sign-flip test over texts, corrected for all parts and tasks. With *n* texts it cannot be
#   below 2 to the power of 1 - *n* times the correction: with few texts nothing can be significant.
# * `rank_low`, `rank_high`: the interval of the rank.
#
# ## Zero, or the mean?
#
# Zeroing a part's output has two effects: it removes the part's information about this text, and it moves the residual
# stream out of distribution. Replacing the output by its *mean* over other text removes the information only. If both
# agree, the information is what mattered. The mean here is over prose: on code it may be misleading, and cost more than
# zero.

# %%
with ql.interventions.cache_activations(ckpt.model, "layers.*.mixer") as taken, torch.no_grad():
    for tokens in plain[0].tokens:
        ckpt.model(torch.tensor([tokens], device=ckpt.model.device), use_cache=False, logits_to_keep=1)
by_mean = ql.ablations.units(ckpt, "mixer", intervention=partial(ql.interventions.Mean, cache=taken))
both = [ql.tasks.mqar(ckpt, pairs=pairs[-1], count=texts_per_domain, name=hardest), plain[1]]
mean_sweep = ql.ablations.sweep(ckpt, by_mean, both, batch_size=16, progress=False)
mean_loss = ql.stats.ablations(mean_sweep)
names = [each.name for each in mixers]
pd.DataFrame(
    {
        f"{task.name}, {how} (nat/token)": ql.notebook.intervals(found.sel(task=task.name, ablation=names), "effect")
        for task in both
        for how, found in (("zero", loss), ("mean", mean_loss))
    },
    index=names,
)

# %% [markdown]
# ## What is significant, and what is not
#
# One rule generates these sentences from the numbers above. Do not claim more from these data than they say.

# %%
findings = "\n".join(ql.stats.ablation_findings(each) for each in (recalled, loss.sel(task=[t.name for t in plain])))
Markdown(findings)

# %% [markdown]
# Limits: a part that is needed is not necessarily where the answer is computed, because later parts depend on it. Two
# parts that can replace each other both look unimportant if removed one at a time. And nothing here covers longer texts
# or other tasks.
#
# ## Saved files
#
# The recording has every score of every ablation on every text. `ql.stats.ablations` reads it on any machine, without
# torch.

# %%
notebook.save(recording=ql.Recording({"ablations": sweep}, sweep.attrs), findings=findings)
