# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cost and horizon of each kind of layer at one context length
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/layers-by-length` runs all of them, and
# `report.py` writes [REPORT.md](REPORT.md) from the store. Every word used for a number is defined in
# [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub
context: int = 256  # tokens of each passage
tokens: int = 8192  # read in all, so that horizons of all lengths are means over as many
repeats: int = 3  # passages whose time is measured
decode_steps: int = 16  # tokens decoded after each of them
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
seed: int = 0  # draws where passages begin

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
attention, deltanet = (ckpt.anatomy.layers(kind) for kind in ("full_attention", "linear_attention"))

# %% [markdown]
# The passages are held-out prose, each begun at a place drawn at random.

# %%
prose = torch.tensor(ckpt.tokenizer("\n".join(ql.tasks.texts("prose"))).input_ids)
starts = np.random.default_rng(seed).integers(0, len(prose) - context - decode_steps, max(repeats, tokens // context))
passages = torch.stack([prose[start : start + context + decode_steps] for start in starts]).to(ckpt.model.device)


# %%
@torch.no_grad()
def timed(passage):
    """Time and memory of reading one passage, and of decoding after it."""
    with ql.watch(ckpt, ql.probes.Timing(), ql.probes.Memory()) as seen:
        cache = ckpt.model(passage[:, :context], use_cache=True, logits_to_keep=1).past_key_values
        for step in range(context, context + decode_steps):
            ckpt.model(passage[:, step : step + 1], past_key_values=cache, use_cache=True)
    return seen.recording()


timed(passages[:1])  # the first is slower than all others
recordings = [timed(passages[index : index + 1]) for index in range(repeats)]
seconds = xr.concat([ql.stats.time_by_kind(each)["kind_seconds_per_token"] for each in recordings], "repeat")
seconds = seconds.median("repeat").sel(part="mixer", drop=True)
number = xr.DataArray([len(ckpt.anatomy.layers(kind)) for kind in seconds["mixer_kind"].values], dims="mixer_kind")
counted = ckpt.anatomy.cost([context])["flops"].isel(context=0, drop=True)
flops = counted.sel(part=seconds["mixer_kind"]).drop_vars("part") / number
cache = ql.stats.memory(recordings[0])["measured"].isel(context_point=0, drop=True)
ql.experiments.record(seconds=seconds, flops=flops, cache=cache)
seconds.to_pandas().T

# %% [markdown]
# Horizons, of as many tokens at every length.

# %%
with torch.no_grad(), ql.watch(ckpt, ql.probes.DeltaNet(every=1, prediction_heads=0), ql.probes.Attention()) as seen:
    for batch in passages[: max(1, tokens // context), :context].split(max(1, 4096 // context)):
        ckpt.model(batch, use_cache=False, logits_to_keep=1)
recording = seen.recording()
half_life = ql.stats.half_life(recording)["half_life_mean_log"].median("head")
distance = ql.stats.attention_distance(recording)["distance"].median("head")
ql.experiments.record(
    half_life=half_life.drop_vars("kind"),
    attention_distance=distance.drop_vars("kind"),
    datasets={"recording": recording},
)
half_life.to_pandas(), distance.to_pandas()
