# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How far back each kind of layer reaches, at one context length
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/horizon-by-length` runs all of them, and
# `report.py` writes [REPORT.md](REPORT.md) from the store. Every word used for a number is defined in
# [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub
context: int = 256  # tokens of each passage
tokens: int = 4096  # of the stretch that is read, whatever the context
every: int = 32  # rows and states of one token in `every`
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
seed: int = 0  # which stretch of the held-out prose: seeds read none of the same tokens

# %%
import numpy as np
import torch
import transformers
import xarray as xr

import qwenlab as ql

transformers.logging.set_verbosity_error()  # which kernels ran is written in the recording
ckpt = ql.open(checkpoint, device=device, dtype=dtype)
if ckpt.facts.parameters < 1e8:
    torch.set_num_threads(1)  # matrices this small gain nothing from more

# %% [markdown]
# The stretch is the same at every context, cut into passages that each begin with an empty state: what changes from
# context to context is the length of what is read, and no token of it. Its control is the same tokens in another order.

# %%
prose = torch.tensor(ckpt.tokenizer("\n".join(ql.tasks.texts("prose"))).input_ids)
stretch = prose[seed * tokens : (seed + 1) * tokens]
assert len(stretch) == tokens, f"the held-out prose has {len(prose) // tokens} stretches of {tokens:,} tokens"
order = torch.from_numpy(np.random.default_rng(seed).permutation(tokens))

# %%
attention = (ql.probes.ImplicitAttention(every=every), ql.probes.SoftmaxAttention(every=every))
with torch.no_grad(), ql.watch(ckpt, *attention, ql.probes.DeltaState(every=every)) as seen:
    for name, text in {"prose": stretch, "shuffled": stretch[order]}.items():
        with seen.label(name):
            for batch in text.view(-1, context).to(ckpt.model.device).split(max(1, 4096 // context)):
                ckpt.model(batch, use_cache=False, logits_to_keep=1)
recording = seen.recording()

# %% [markdown]
# Reach, head by head. Beside it what even weights would have, which reach for nothing: their rows give 1 / (t + 1) to
# each of the distances 0 to t.

# %%
reach = ql.stats.reach(recording, by_label=True).rename(label="text")
heads = reach.stack(place=("layer", "head")).dropna("place", subset=["horizon"])
names = [f"{layer}.{head}" for layer, head in heads["place"].values]
heads = heads.drop_vars(["place", "layer", "head"]).rename(place="head").assign_coords(head=names)
kinds = reach["mass_share"].groupby("kind").mean(["layer", "head"]).rename(kind="mixer_kind")
seen_tokens = np.arange(1, context + 1)
even = np.cumsum(1 / seen_tokens[::-1])[::-1] / context  # mean over rows of the mass at each distance
within = np.searchsorted(np.cumsum(even), reach["share"])
ql.experiments.record(
    horizon=heads["horizon"].drop_vars("kind"),
    entropy=heads["entropy"].drop_vars("kind"),
    first_mass=heads["first_mass"].drop_vars("kind"),
    mass_by_distance=kinds.sel(distance_bin=kinds["distance_bin"] < context),
    even_horizon=xr.DataArray(within, {"share": reach["share"].values}, dims="share"),
    even_entropy=float(np.log(seen_tokens).mean()),
    even_first_mass=float((1 / seen_tokens).mean()),
    datasets={"recording": recording},
)
heads["horizon"].groupby("kind").quantile([0, 0.5, 1]).to_series().unstack("quantile")

# %% [markdown]
# What the states hold, by octave of the position in a passage.

# %%
held = xr.merge([ql.stats.state_rank(recording, by_label=True), ql.stats.state_growth(recording, by_label=True)])
held = held.rename(label="text").drop_vars("kind").median("head").dropna("position_bin", subset=["norm"])
ql.experiments.record(effective_rank=held["effective_rank"], norm=held["norm"])
held["effective_rank"].to_series().unstack("position_bin")
