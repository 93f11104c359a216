# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # qwenlab in ten minutes
#
# qwenlab opens a hybrid checkpoint (DeltaNet layers with a few attention layers between them, as in Qwen3.5 and
# Qwen3.6), watches what happens inside while your own code runs the model, and gives back numbers that say what
# they are. This notebook walks through all of it once, on a small trained model that ships with the package, so
# nothing has to be downloaded.
#
# The documentation has a glossary. For more: `10_layers` on DeltaNet and attention, `13_maps` on which tokens their
# outputs are made of, `20_routing` on experts, `30_acceptance` on drafts of the MTP head. `qwenlab new 10_layers
# my_layers.ipynb` in a shell, or in a cell after a `!`, writes a copy to work in.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # intervals need two or more
max_tokens: int = 256  # read of each text
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None keeps nothing

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import qwenlab as ql

notebook = ql.notebook.start(out)


# %% [markdown]
# ## Open
#
# `ql.open` takes the name of a toy, a folder, or a name on the hub. What comes back holds the plain `transformers`
# model (`.model`), its tokenizer, its multi-token-prediction head (`.mtp`) and its anatomy. It prints itself.

# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %%
prompt = ckpt.tokenizer("for index in range(", return_tensors="pt").to(ckpt.model.device)
ckpt.tokenizer.decode(ckpt.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0])

# %% [markdown]
# ## Anatomy, without weights
#
# Layers by kind, parameters, memory and cost follow from a config alone. The published ones are in the package, so
# the large checkpoints can be looked at on any laptop.

# %%
ql.anatomy("Qwen3.6-27B")

# %%
large = ql.anatomy("Qwen3.6-35B-A3B")
large

# %% [markdown]
# The same numbers as labelled data: bytes of KV cache and of recurrent state of one sequence, by context.

# %%
large.memory([1_024, 32_768, 262_144]).to_dataframe()

# %% [markdown]
# ## Watch
#
# Inside `ql.watch` the model is used as always: forward, `generate`, a training step. Probes read what passes and
# keep sums, counts and histograms, not activations, so memory does not grow with what is read. `thorough` probes
# leave nothing out; `ql.probes.defaults(ckpt)` are the light ones, which sample tokens and cost a few per cent. Not
# one logit changes, and nothing is left behind. If something that should be read did not pass, leaving the block is
# an error, not an empty result.

# %%
with torch.no_grad(), ql.watch(ckpt, *ql.probes.thorough(ckpt)) as seen:
    for domain in ql.tasks.DOMAINS:
        for text in ql.tasks.texts(domain, texts_per_domain):
            tokens = ckpt.tokenizer(text, return_tensors="pt").input_ids[:, :max_tokens].to(ckpt.model.device)
            with seen.label(domain):
                watched = ckpt.model(tokens).logits

with torch.no_grad():
    print("logits the same, bit for bit:", torch.equal(watched, ckpt.model(tokens).logits))

# %% [markdown]
# ## Recording
#
# What was seen is an `xarray` tree: one dataset a probe, every dimension and unit named, and where it came from in
# the attributes.

# %%
recording = seen.recording()
recording

# %%
recording["deltanet"]

# %% [markdown]
# ## Statistics, then figures
#
# `ql.stats` makes numbers of a recording: a Dataset in, a Dataset out, each with its units and its interval.
# `ql.plots` draws them and computes nothing. Neither needs torch.

# %%
half_life = ql.stats.half_life(recording)
half_life["half_life_mean_log"].to_pandas()  # tokens, by layer and head

# %%
notebook.show(
    "half_life",
    ql.plots.half_life(half_life),
    "Quantiles of the half-life over tokens, for each DeltaNet layer and head.",
)

# %%
layers = ql.stats.layer_table(recording)
notebook.show(
    "layers", ql.plots.layer_table(layers), "The layers in their order, by kind, with time, reach, gates and routing."
)

# %% [markdown]
# ## Tasks: losses, recall, drafts
#
# Held-out texts, a task whose right answers are known, and the drafts of the multi-token-prediction head.
# **Teacher-forced agreement** is how often the head's first draft is the main model's own choice along a given
# text. It is not an acceptance rate: that is counted along the model's own text, round by round. The control feeds
# the head another position's hidden state of the same text: what it can do without.

# %%
scores = {}
for domain in ql.tasks.DOMAINS:
    texts = ql.tasks.texts(domain, texts_per_domain)
    task = ql.tasks.text_task(ckpt, texts, max_tokens=max_tokens)
    scores[domain] = {"loss (nats a token)": ql.tasks.measure(ckpt, [task])["loss"]}
    if ckpt.mtp is not None:
        for name, shuffled in (("teacher-forced agreement", False), ("the same, hidden states shuffled", True)):
            labels = [str(number) for number in range(len(texts))]  # one group per text
            trace = ql.speculative.trace(ckpt, task.tokens, depth=1, labels=labels, shuffled=shuffled, progress=False)
            scores[domain][name] = ql.stats.agreement(trace.recording(), by_label=True)["teacher_forced"]


def with_interval(by_text, level=0.95, draws=1000):
    """Mean over texts with its bootstrap interval, as text."""
    values = by_text.values
    means = values[np.random.default_rng(0).integers(0, len(values), (draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


pd.DataFrame({domain: {name: with_interval(each) for name, each in row.items()} for domain, row in scores.items()}).T

# %%
recalled = {}
for pairs in (2, 4, 8, 16):
    task = ql.tasks.recall_task(ckpt, ql.tasks.recall_texts(pairs, 16, seed=1))
    recalled[f"{pairs} pairs"] = with_interval(ql.tasks.measure(ckpt, [task])["accuracy"])
pd.Series(recalled, name=f"asked-for values right (chance {task.chance:.2f})").to_frame()

# %% [markdown]
# ## Save, and open anywhere
#
# A recording is one NetCDF file. It opens on a machine without torch or the checkpoint.

# %%
path = recording.save(Path(tempfile.mkdtemp(prefix="qwenlab-tour-"), "recording.nc"))
again = ql.Recording.open(path)
print(f"{path.stat().st_size / 1e3:.0f} kB; the same half-lives:", ql.stats.half_life(again).equals(half_life))

# %% [markdown]
# ## In your own training loop
#
# qwenlab asks for no wrapper and no `ql.open`: any model of a known family will do, also while it trains. Here one
# is made new, and two steps of a plain loop are watched.

# %%
toy = ql.open("toy-dense")
torch.manual_seed(0)
model = type(toy.model)(toy.model.config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.tensor([toy.tokenizer(text).input_ids[:128] for text in ql.tasks.texts("code", 4)])

with ql.watch(model, ql.probes.Residual(), ql.probes.DeltaNet()) as training:
    for step in range(2):
        with training.label(f"step {step}"):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f} nats a token")

ql.stats.residual(training.recording(), by_label=True)["ratio"].sel(part="mixer").to_pandas().T

# %% [markdown]
# Each column is a step, each row a layer: the norm of what the mixer adds, over that of the stream it is added to.

# %%
notebook.save(recording=recording)
