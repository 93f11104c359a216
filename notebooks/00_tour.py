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
# qwenlab opens a hybrid checkpoint (DeltaNet layers with a few attention layers in between, as in Qwen3.5 and
# Qwen3.6), records what happens inside while your own code runs the model, and returns labelled numbers with units.
# This notebook shows each step once, on a small trained model that ships with the package: no download is needed.
#
# The documentation has a glossary. For more: `10_layers` on DeltaNet and attention, `13_maps` on which tokens their
# outputs are made of, `20_routing` on experts, `30_acceptance` on drafts of the MTP head. `qwenlab new 10_layers
# my_layers.ipynb` in a shell, or in a cell after a `!`, writes a copy to work in.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # two or more for intervals
max_tokens: int = 256  # tokens of each text
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None saves nothing

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
# `ql.open` takes the name of a toy, a folder, or a name on the hub. The checkpoint has the plain `transformers` model
# (`.model`), its tokenizer, its multi-token-prediction head (`.mtp`) and its anatomy. `notebook.open` does the same
# without log messages, and runs a small model on one thread.

# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %%
prompt = ckpt.tokenizer("for index in range(", return_tensors="pt").to(ckpt.model.device)
ckpt.tokenizer.decode(ckpt.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0])

# %% [markdown]
# ## Anatomy, without weights
#
# A config alone gives the layers by kind, the parameters, memory and cost. Published configs are in the package, so you
# can inspect the large checkpoints on a laptop.

# %%
ql.anatomy("Qwen3.6-27B")

# %%
large = ql.anatomy("Qwen3.6-35B-A3B")
large

# %% [markdown]
# The same numbers as labelled data: bytes of KV cache and recurrent state for one sequence, by context length.

# %%
large.memory([1_024, 32_768, 262_144]).to_dataframe()

# %% [markdown]
# ## Watch
#
# Inside `ql.watch` you use the model as always: forward, `generate`, a training step. Probes read the activations and
# keep only sums, counts and histograms, so memory does not grow with the number of tokens. `thorough` probes read
# every token; `ql.probes.defaults(ckpt)` sample tokens and cost a few per cent. No logit changes, and the block
# removes all of its hooks. A probe whose layers never ran raises an error at the end of the block; it does not return
# an empty result.

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
# The recording is an `xarray` tree: one dataset per probe, with named dimensions and units. Its attributes say which
# checkpoint, device, precision and versions it comes from.

# %%
recording = seen.recording()
recording

# %%
recording["deltanet"]

# %% [markdown]
# ## Statistics, then figures
#
# `ql.stats` turns a recording into statistics: a Dataset in, a Dataset out, with units and intervals. `ql.plots` draws
# them and computes nothing. Neither needs torch.

# %%
half_life = ql.stats.half_life(recording)
half_life["half_life_mean_log"].to_pandas()  # tokens, by layer and head

# %%
notebook.show(
    "half_life", ql.plots.half_life(half_life), "Quantiles of the half-life over tokens, by DeltaNet layer and head."
)

# %%
layers = ql.stats.layer_table(recording)
notebook.show(
    "layers", ql.plots.layer_table(layers), "The layers in order, by kind, with time, reach, gates and routing."
)

# %% [markdown]
# ## Tasks: losses, recall, drafts
#
# Three measurements: the loss on held-out texts, recall (a task with known answers), and the drafts of the
# multi-token-prediction head. **Teacher-forced agreement** is the share of positions of a text at which the head's
# first draft equals the target model's choice. It is not an acceptance rate, which is counted round by round along
# the model's own text. The control gives the head the hidden state of another position in the same text.

# %%
scores = {}
for domain in ql.tasks.DOMAINS:
    texts = ql.tasks.texts(domain, texts_per_domain)
    task = ql.tasks.text_task(ckpt, texts, max_tokens=max_tokens)
    scores[domain] = {"loss (nat/token)": ql.tasks.measure(ckpt, [task])["loss"]}
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
# You need neither a wrapper nor `ql.open`: `ql.watch` takes any model of a known family, also while it trains. Here
# is a new model and two steps of a plain training loop.

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
        print(f"step {step}: loss {loss.item():.3f} nat/token")

ql.stats.residual(training.recording(), by_label=True)["ratio"].sel(part="mixer").to_pandas().T

# %% [markdown]
# Each row is a layer and each column a step: the norm of the mixer's output over the norm of the residual stream.

# %%
notebook.save(recording=recording)
