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
# Take a part away, and see what the model can no longer do. The experiment is easy to run and easy to be misled by:
#
# * **Any damage hurts.** That the loss rises without a layer says that something is broken, not that this layer does
#   the task. So each ablation is held against *random controls*: as much taken away elsewhere.
# * **Texts differ.** So an ablation is always compared with the unedited model on the same text, and intervals are over
#   texts.
# * **Who tries a hundred parts finds something.** So every p is corrected for all parts and all tasks.
# * **A model that cannot do a task cannot lose it.** So each task has its chance level, and the unedited model is held
#   against that first.
#
# This notebook asks which mixers and MLPs of one checkpoint carry recall, and which carry plain text. An ablation
# *stands* here if it differs from 0 and goes beyond its controls. Numbers in brackets are 95 % intervals over
# texts. Words used for numbers are in [the glossary](../docs/glossary.md).
# [The experiment](../experiments/functional-ablation/REPORT.md) asks the same of more tasks and more parts.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 14  # texts of each task; below about a dozen no p can survive its correction
max_tokens: int = 64  # of each passage of prose and code
pairs: list[int] = [4, 16]  # told in each text of the tasks of recall, and each asked for once
controls: int = 4  # random controls of each ablation; how they differ from each other shows in two or more
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording, the findings and the figures; None keeps nothing

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
# `units` makes one ablation of every part of a sort: here every mixer and every MLP alone, whose output is set to zero,
# and all mixers of a kind together. Each is a small object that says what it does to what; nothing has been changed.

# %%
kinds = {"linear_attention": "all DeltaNet", "full_attention": "all attention"}
mixers, mlps = ql.ablations.units(ckpt, "mixer"), ql.ablations.units(ckpt, "mlp")
whole = [replace(each, name=kinds[each.kind]) for each in ql.ablations.units(ckpt, "kind")]
parts = [*whole, *mixers, *mlps]
pd.DataFrame([{"name": each.name, "edit": each.edit, "parameters": f"{each.parameters:,}"} for each in parts])

# %% [markdown]
# An edit acts inside a `with` block, on the plain model. One that matches nothing is an error, not a score that happens
# to be the clean one:

# %%
try:
    with ql.intervene(ckpt.model, ql.interventions.Zero("layers.*.mixre")):
        pass
except ql.errors.QwenlabError as error:
    print(type(error).__name__, error, sep="\n")

# %% [markdown]
# ## Tasks
#
# Two kinds. *Plain text*: every token but the first is asked for, and the score is the loss. *Recall* (MQAR: Arora et
# al. 2023, [arXiv:2312.04927](https://arxiv.org/abs/2312.04927)): pairs of a letter and a digit are told, and later
# asked for, so that the right answer is known and nothing but the text before tells it. The tasks are made of the
# checkpoint's own tokens, from a seed.

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
# A mixer is held against other mixers, an MLP against other MLPs. All mixers of a kind are held against as many
# *parameters* in other mixers and MLPs, within 10 %. Where no other parts make up as many, which is so beside the large
# experts of an MoE, there is no control, and what is said below of such an ablation says so.

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
# Every ablation reads every text, and one forward pass serves all scores. Layers below an edit are not run again:
# `layers_run` is the share of the layers of whole passes that did run. `keep=` names a file from which a sweep that was
# interrupted goes on.

# %%
sweep = ql.ablations.sweep(ckpt, [*parts, *matched], tasks, batch_size=16)
print(
    f"{sweep.sizes['ablation']} ablations of {sweep.sizes['text']} texts; layers run: {sweep.attrs['layers_run']:.0%}"
)

# %% [markdown]
# How does one know that these numbers are right? By another way to the same ones. Below, the last mixer's ablation is
# made once more by hand, with whole passes and nothing skipped; and the unedited model is scored again after all that
# was done to it. The first difference is a matter of rounding; the second has to be exactly zero.

# %%
one = mixers[-1]
with ql.intervene(ckpt.model, *one.edits):
    by_hand = ql.tasks.measure(ckpt, tasks, batch_size=16)
again = ql.tasks.measure(ckpt, tasks, batch_size=16)
print(f"{one.name}, loss by hand:", np.abs(by_hand["loss"] - sweep["loss"].sel(ablation=one.name)).values.max())
print("unedited model, loss afterwards:", np.abs(again["loss"] - sweep["clean_loss"]).values.max())

# %% [markdown]
# ## What the unedited model can do
#
# `above_chance` is its accuracy less that of guessing. Where the interval reaches 0 there is nothing to lose, and what
# an ablation does to the accuracy says nothing; plain text has no chance level.

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
# ## What each part harms
#
# The rise of the loss, by part and task. Each row has a scale of its own, whose end stands at its right: compare along
# a row, not down a column. Cells that are filled *stand*; the others are only underlined, however large.

# %%
notebook.show(
    "loss_map",
    ql.plots.ablation_map(loss),
    "Rise of the loss by ablated part and task: a column a layer, a panel a sort of part.",
)

# %% [markdown]
# The same for the accuracy of recall alone, which says how much of the ability is gone rather than how surprised the
# model is: a model that is sure and wrong has a large loss, and one that only guesses a small one.

# %%
recalled = accuracy.sel(task=[task.name for task in recall])
notebook.show(
    "recall_map",
    ql.plots.ablation_map(recalled),
    "Fall of the accuracy of recall by ablated part: a column a layer, a panel a sort of part.",
)

# %% [markdown]
# ## Who comes first, and who only seems to
#
# The parts by what they cost on the hardest task of recall. Grey strokes are the controls of the part on that line: a
# mark that lies among them is no more than what taking away anything does. At the right are the ranks that each part
# can have at 95 %, all at once: parts whose bars overlap are tied, whatever their order on the page.

# %%
hardest = recall[-1].name
notebook.show(
    "ranking",
    ql.plots.ablation_ranking(accuracy, hardest, most=20),
    f"Parts by the fall of the accuracy on {hardest}, with intervals, controls and the ranks the data allow.",
)

# %%
table = ql.stats.ablation_table(accuracy, hardest).isel(ablation=slice(6))
effects = ["harm", "harm_interval", "beyond_controls", "beyond_controls_interval"]
table[effects].to_dataframe()[effects].unstack("bound")

# %%
table[["p_holm", "rank_low", "rank_high", "stands"]].to_dataframe()[["p_holm", "rank_low", "rank_high", "stands"]]

# %% [markdown]
# * `harm`: fall of the accuracy, unedited less edited, paired by text; `low` and `high` are the ends of its interval.
# * `beyond_controls`: the same less the mean of its own controls. Its interval is wider, since controls were drawn at
#   random too and are few.
# * `p_holm`: from flipping the signs of whole texts at random, corrected for all parts and tasks. Of *n* texts none can
#   be smaller than 2 to the power of 1 - *n*, which the correction multiplies: with few texts nothing can stand.
# * `rank_low`, `rank_high`: the ranks that the data allow.
#
# ## Zero, or the mean?
#
# A part's output is never zero in a working model, so setting it to zero does two things: it takes away what the part
# says of this text, and it moves the stream to where it never is. Its *mean* over other text takes away the first and
# spares the second. Where both agree, the part's message was what mattered. The mean here is of prose: on code it may
# be the wrong thing to say, and cost more than saying nothing.

# %%
with ql.interventions.cache_activations(ckpt.model, "layers.*.mixer") as taken, torch.no_grad():
    for tokens in plain[0].tokens:
        ckpt.model(torch.tensor([tokens], device=ckpt.model.device), use_cache=False, logits_to_keep=1)
by_mean = ql.ablations.units(ckpt, "mixer", edit=partial(ql.interventions.Mean, over=taken))
both = [ql.tasks.mqar(ckpt, pairs=pairs[-1], count=texts_per_domain, name=hardest), plain[1]]
mean_sweep = ql.ablations.sweep(ckpt, by_mean, both, batch_size=16, progress=False)
mean_loss = ql.stats.ablations(mean_sweep)
names = [each.name for each in mixers]
pd.DataFrame(
    {
        f"{task.name}, {how} (nat/token)": ql.notebook.intervals(found.sel(task=task.name, ablation=names), "harm")
        for task in both
        for how, found in (("zero", loss), ("mean", mean_loss))
    },
    index=names,
)

# %% [markdown]
# ## What stands, and what does not
#
# The sentences are made from the numbers above, by one rule for all: whatever is not said to stand here should not be
# said elsewhere of these data.

# %%
findings = "\n".join(ql.stats.ablation_findings(each) for each in (recalled, loss.sel(task=[t.name for t in plain])))
Markdown(findings)

# %% [markdown]
# What this cannot tell: a part that is needed need not be where the answer is found, since what is built on it breaks
# too; two parts that stand in for each other both look idle when one is taken away at a time; and what a part does on
# longer texts, or on other tasks, was not asked.
#
# ## What is kept
#
# The recording has the sweep as it is: every score of every ablation on every text. `ql.stats.ablations` reads it on
# any machine, without torch.

# %%
notebook.save(recording=ql.Recording({"ablations": sweep}, sweep.attrs), findings=findings)
