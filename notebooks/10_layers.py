# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DeltaNet and attention compared
#
# A hybrid model moves information between tokens with two kinds of mixer. **Attention** keeps the key and the value of
# every token and reads all of them again at each new token. **DeltaNet** keeps one matrix per head, its state *S*. At
# each token the state decays, is corrected, and is read:
#
# > S ← αS,  S ← S + k (β (v − Sᵀk))ᵀ,  o = Sᵀq
#
# Each token sets its own decay α and write strength β, both between 0 and 1 (Yang et al. 2024,
# [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)).
#
# This notebook measures, on one checkpoint, how far back each kind reaches, how open its output gates are, what
# DeltaNet writes, how the cost of each kind grows with the context, and which kind carries recall. [The
# glossary](../docs/glossary.md) defines every quantity. Brackets are 95 % intervals over texts unless noted.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # two or more for intervals
max_tokens: int = 256  # tokens of each text
contexts: list[int] = [128, 512, 2048]  # context lengths for time and memory, in tokens
decode_steps: int = 8  # tokens decoded after each context
repeats: int = 3  # of each time measurement
recall_texts: int = 16  # for each number of pairs
controls: int = 3  # random sets of DeltaNet layers to compare with the attention layers
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None saves nothing

# %%
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import Markdown

import qwenlab as ql

notebook = ql.notebook.start(out)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %% [markdown]
# ## Reading
#
# The plain `transformers` model reads held-out texts of several domains inside `ql.watch`. The probes keep sums and
# histograms by domain, layer and head. `thorough` probes read every token; `ql.probes.defaults` sample tokens and can
# stay on during training. Watching changes no logit.

# %%
ql.tasks.feed(ckpt, ql.tasks.texts("code", 1), max_tokens=max_tokens)  # the first pass is slower than all others
with ql.watch(ckpt, *ql.probes.thorough(ckpt)) as seen:
    for domain in ql.tasks.DOMAINS:
        with seen.label(domain):
            ql.tasks.feed(ckpt, ql.tasks.texts(domain, texts_per_domain), batch_size=4, max_tokens=max_tokens)

recording = seen.recording()
recording

# %% [markdown]
# ## The layers at a glance
#
# One row per layer. DeltaNet layers have a `half-life`: the number of tokens after which half of the state has decayed,
# for the median token in the median head. Attention layers have an `attention distance`: how far back a query looks on
# average. Both are in tokens, but they differ: after one half-life the state still holds the other half.

# %%
layers = ql.stats.layer_table(recording)
notebook.show(
    "layers", ql.plots.layer_table(layers), "The layers in order, by kind, with time, reach, gates and routing."
)

# %% [markdown]
# ## How far back
#
# A DeltaNet head that decays by α = exp(*g*) at a token has a half-life of ln ½ / *g* tokens there. The figure shows
# the spread over tokens for each head. The wider it is, the more the head chooses, token by token, to keep or to
# forget.

# %%
half_life = ql.stats.half_life(recording)
notebook.show(
    "half_life", ql.plots.half_life(half_life), "Quantiles of the half-life over tokens, by DeltaNet layer and head."
)

# %% [markdown]
# Attention does not decay. Its distance is the mean number of tokens from query to key, weighted by attention
# probability. It cannot exceed the length of the text, so compare it only over the same texts.

# %%
distance = ql.stats.attention_distance(recording)
notebook.show(
    "attention_distance", ql.plots.attention_distance(distance), "Share of attention by distance, by attention layer."
)

# %% [markdown]
# Both by kind, as quartiles over all heads: the half-life of the mean log decay (decays multiply, so logs add), and the
# mean attention distance.

# %%
QUARTILES = [0.25, 0.5, 0.75]
reach = {
    "DeltaNet half-life (tokens)": half_life["half_life_mean_log"],
    "attention distance (tokens)": distance["distance"],
}
pd.DataFrame(
    {name: each.quantile(QUARTILES).values for name, each in reach.items()},
    index=["lower quartile", "median", "upper quartile"],
)

# %% [markdown]
# ## Gates
#
# Both kinds of mixer end in an output gate, which scales each channel of the output. Its mean value is the mean of the
# gate's sigmoid over channels. Only DeltaNet has a write strength β: 0 leaves the state unchanged, 1 replaces
# everything stored under the token's key.

# %%
gates = ql.stats.gates(recording)
notebook.show("gates", ql.plots.gates(gates), "Histograms of output gates of both kinds and of the write strength.")

# %% [markdown]
# ## What is written
#
# Before a token writes, the state already returns some value Sᵀk for its key. The prediction error ‖v − Sᵀk‖ / ‖v‖ is 1
# if that value is zero, below 1 if it is partly right, and above 1 if it is something else. The probe computes it from
# the kernel's inputs and compares its own state with the kernel's; the largest difference is printed below. The key
# collision is the mean squared cosine between the keys of two tokens; keys spread evenly over all directions have the
# value in the column `collision floor`. The table has means over heads; `written` has every head, with intervals.

# %%
written, keys = ql.stats.writing(recording), ql.stats.key_collision(recording)
if "state_gap" in recording["deltanet"].attrs:
    print(f"our states differ from the kernel's by at most {recording['deltanet'].attrs['state_gap']:.1e} of the norm")
by_domain = ql.stats.writing(recording, by_label=True)["error_ratio"].mean("head").to_pandas().T.add_prefix("error: ")
pd.DataFrame(
    {
        "write strength": written["beta"].mean("head").to_pandas(),
        "update norm": written["update_norm"].mean("head").to_pandas(),
        "prediction error": written["error_ratio"].mean("head").to_pandas(),
        "state norm at the end": written["state_norm"].mean("head").to_pandas(),
        "key collision": keys["key_collision"].mean("key_head").to_pandas(),
        "collision floor": float(keys["isotropic_floor"]),
    }
).join(by_domain)

# %% [markdown]
# ## What each part adds
#
# Every mixer and every MLP adds a vector to the residual stream. The top panel is its norm over the stream's norm. The
# bottom panel is their cosine: near 0 the part adds something new, above 0 it strengthens the stream, below 0 it
# removes from it.

# %%
notebook.show(
    "residual", ql.plots.residual(ql.stats.residual(recording)), "Size and direction of the outputs of mixers and MLPs."
)

# %% [markdown]
# ## Time, by kind
#
# The time of each kind of layer and part during the prefill above, without the cost of the probes.

# %%
notebook.show(
    "time_by_kind",
    ql.plots.time_by_kind(ql.stats.time_by_kind(recording)),
    "Share of the layers' time by kind and part.",
)

# %% [markdown]
# ## Cost by context length
#
# Attention reads all earlier tokens; DeltaNet reads a state of fixed size. So the cost per token grows with the context
# for attention only. The figure shows the time of one mixer of each kind, per token of a prefill of *n* tokens and for
# one more token after it. For comparison it shows the counts from the config: FLOPs (a multiply-add is 2) and the
# minimum number of bytes moved.

# %%
long_text = "\n".join(ql.tasks.texts("prose"))
stream = torch.tensor([ckpt.tokenizer(long_text).input_ids], device=ckpt.model.device)
stream = stream.repeat(1, -(-(max(contexts) + decode_steps) // stream.shape[1]))


@torch.no_grad()
def measure(context):
    """Time and memory of reading `context` tokens, and of decoding after them."""
    with ql.watch(ckpt, ql.probes.Timing(), ql.probes.Memory()) as seen:
        cache = ckpt.model(stream[:, :context], use_cache=True, logits_to_keep=1).past_key_values
        for step in range(context, context + decode_steps):
            ckpt.model(stream[:, step : step + 1], past_key_values=cache, use_cache=True)
    return seen.recording()


measure(min(contexts))  # decoding for the first time is slower, too
measured = [[measure(context) for context in contexts] for _ in range(repeats)]


def mixer_time(recording):
    return ql.stats.time_by_kind(recording)["kind_seconds_per_token"].sel(part="mixer", drop=True)


seconds = xr.concat([xr.concat([mixer_time(each) for each in row], "context") for row in measured], "repeat")
seconds = seconds.assign_coords(context=contexts)
number = xr.DataArray([len(ckpt.anatomy.layers(kind)) for kind in seconds["mixer_kind"].values], dims="mixer_kind")
counted = ckpt.anatomy.cost(contexts).sel(part=seconds["mixer_kind"]).drop_vars("part") / number
costs = xr.Dataset(
    {
        "seconds": seconds.assign_attrs(units="s/token", long_name="measured time of one mixer"),
        "flops": counted["flops"].assign_attrs(units="FLOP/token", long_name="FLOPs of one mixer"),
        "bytes": counted["bytes"].assign_attrs(units="B/token", long_name="bytes that one mixer moves at the least"),
    }
)


# %%
@ql.plots.style()
def cost_figure():
    """Measured time, counted FLOPs and bytes of one mixer of each kind, per token."""
    names = ["measured time (µs)", "counted FLOPs (millions)", "counted bytes (kB)"]
    figure, grid = plt.subplots(2, 3, figsize=(10, 5), sharex=True, layout="constrained")
    for phase, row in zip(["prefill", "decode"], grid, strict=True):
        for kind in costs["mixer_kind"].values:
            style = dict(color=ql.plots.COLOURS[kind], label=ql.plots.LABELS[kind], marker="o", markersize=4)
            time = 1e6 * costs["seconds"].sel(phase=phase, mixer_kind=kind)
            row[0].fill_between(
                contexts, time.min("repeat"), time.max("repeat"), color=style["color"], alpha=0.25, linewidth=0
            )
            row[0].plot(contexts, time.median("repeat"), **style)
            row[1].plot(contexts, costs["flops"].sel(phase=phase, mixer_kind=kind) / 1e6, **style)
            row[2].plot(contexts, costs["bytes"].sel(phase=phase, mixer_kind=kind) / 1e3, **style)
        for axes, name in zip(row, names, strict=True):
            axes.set(title=f"{phase}: {name}", xscale="log", ylim=(0, None))
            axes.set_xticks(contexts, [f"{context:,}" for context in contexts], minor=False)
            axes.minorticks_off()
    for axes in grid[1]:
        axes.set_xlabel("context (tokens)")
    grid[0, 0].legend()
    return figure


notebook.show("cost_by_context", cost_figure(), "Time, FLOPs and bytes of one mixer of each kind, by context length.")

# %% [markdown]
# Points are medians over repeats; bands go from the fastest to the slowest. Where measured and counted ratios of the
# two kinds differ, the kernel is the reason. The recording says which delta rule ran (`kernel_delta_rule`); on a CPU
# it is a reference implementation.


# %%
def ratio(table):
    return table.sel(mixer_kind="full_attention") / table.sel(mixer_kind="linear_attention")


ratios = xr.Dataset(
    {
        "attention over DeltaNet, measured time": ratio(costs["seconds"].median("repeat")),
        "attention over DeltaNet, FLOPs": ratio(costs["flops"]),
        "attention over DeltaNet, bytes": ratio(costs["bytes"]),
    }
)
print("delta rule:", recording.attrs["kernel_delta_rule"], "· attention:", recording.attrs["attention_implementation"])
ratios.reset_coords(drop=True).to_dataframe(dim_order=["phase", "context"])

# %% [markdown]
# ## Memory by context length
#
# The KV cache of the attention layers grows with every token; the states of the DeltaNet layers do not. Lines are
# predictions from the config, points the measured bytes of the cache's tensors.

# %%
memory = ql.stats.memory(ql.record.merge(*measured[0]))
notebook.show(
    "memory_by_context",
    ql.plots.memory(memory),
    "Bytes of KV cache and states by context, predicted and measured.",
)
print(f"measured / predicted bytes: {float(memory['ratio'].min()):.3f} to {float(memory['ratio'].max()):.3f}")

# %% [markdown]
# ## Which kind carries recall
#
# A recall text lists key-value pairs and then queries the keys, so the answer is known and must come from the context.
# Below, plain forward hooks set the mixer outputs of some layers to zero:
#
# * all attention layers,
# * the same number of DeltaNet layers, drawn at random a few times: the **control**, since removing any layer does
#   harm,
# * all DeltaNet layers.
#
# A kind carries recall if removing it costs more recall than removing as many layers of the other kind. For all
# DeltaNet layers there is no such control, because there are fewer attention layers. The loss on ordinary text shows
# how much else broke: a model that has lost everything has lost recall too.

# %%
decoder = ql.checkpoint.decoder_of(ckpt.model)
attention, deltanet = (ckpt.anatomy.layers(kind) for kind in ("full_attention", "linear_attention"))


@contextmanager
def without(some_layers):
    """The mixers of these layers add nothing to the stream while the block runs."""

    def nothing(module, inputs, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    hooks = [decoder.mixer(layer).register_forward_hook(nothing) for layer in some_layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


PAIRS, asked = (4, 8, 16, 32), 8
rng = np.random.default_rng(0)
drawn = [
    tuple(sorted(rng.choice(deltanet, min(len(attention), len(deltanet)), replace=False))) for _ in range(controls)
]
removals = {
    "with all layers": [()],
    "without attention": [attention],
    "without as many DeltaNet": drawn,
    "without all DeltaNet": [deltanet],
}
few = -(-texts_per_domain // 2)
ordinary = ql.tasks.texts("code", few) + ql.tasks.texts("prose", few)

plain = [ql.tasks.text_task(ckpt, ordinary, max_tokens=max_tokens)]
recall = [ql.tasks.recall_task(ckpt, ql.tasks.recall_texts(pairs, recall_texts, seed=1)) for pairs in PAIRS]
chance = recall[0].chance

accuracy, loss = {}, {}
for name, sets in removals.items():
    recalls, losses = [], []
    for removed in sets:
        with without(removed):
            by_pairs = [ql.tasks.measure(ckpt, [task], batch_size=32)["accuracy"] for task in recall]
            recalls.append(xr.concat(by_pairs, pd.Index(PAIRS, name="pairs")))
            losses.append(ql.tasks.measure(ckpt, plain)["loss"])
    accuracy[name], loss[name] = xr.concat(recalls, "set"), xr.concat(losses, "set")


# %%
def interval(values, level=0.95, draws=1000):
    """Bootstrap interval of the mean over texts (and over the sets drawn, where there are several)."""
    rng, flat = np.random.default_rng(0), values.stack(sample=["set", "text"]).values
    means = flat[..., rng.integers(0, flat.shape[-1], (draws, flat.shape[-1]))].mean(axis=-1)
    return np.quantile(means, [0.5 - level / 2, 0.5 + level / 2], axis=-1)


@ql.plots.style()
def recall_figure():
    """Recall by number of pairs; marks are shifted a little so that equal ones do not hide each other."""
    both = ql.plots.COLOURS
    looks = {
        "with all layers": dict(color="0.2", marker="s"),
        "without attention": dict(color=both["full_attention"], marker="o"),
        "without as many DeltaNet": dict(
            color=both["linear_attention"], marker="^", markerfacecolor="white", linestyle=":"
        ),
        "without all DeltaNet": dict(color=both["linear_attention"], marker="o"),
    }
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for place, (name, values) in enumerate(accuracy.items()):
        mean = values.mean(["set", "text"])
        reach = np.abs(interval(values) - mean.values)
        axes.errorbar(np.array(PAIRS) * 1.05**place, mean, reach, **looks[name], label=name, linewidth=1)
    axes.axhline(chance, color="0.6", linewidth=1, linestyle="--", label="chance")
    axes.set(xlabel="pairs in the text", ylabel="correct answers (share)", ylim=(-0.02, 1.05), xscale="log")
    axes.set_xticks(PAIRS, [str(pairs) for pairs in PAIRS])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


notebook.show("recall", recall_figure(), "Recall by number of pairs, with the mixers of some layers removed.")

# %%
rows = {}
for name in removals:
    (low, high), (best, worst) = interval(accuracy[name].sel(pairs=[asked]))[:, 0], interval(loss[name])
    rows[name] = {
        "layers removed": len(removals[name][0]),
        f"recall at {asked} pairs": f"{float(accuracy[name].sel(pairs=asked).mean()):.2f} [{low:.2f}, {high:.2f}]",
        "loss on code and prose (nat/token)": f"{float(loss[name].mean()):.2f} [{best:.2f}, {worst:.2f}]",
    }
pd.DataFrame(rows).T

# %%
kept = {name: float(values.sel(pairs=asked).mean()) for name, values in accuracy.items()}
by_set = accuracy["without as many DeltaNet"].sel(pairs=asked).mean("text")
Markdown(
    f"At {asked} pairs this checkpoint recalls **{kept['with all layers']:.2f}** of the values "
    f"(chance {chance:.2f}). Without its {len(attention)} attention layers it recalls "
    f"**{kept['without attention']:.2f}**; without as many DeltaNet layers "
    f"**{kept['without as many DeltaNet']:.2f}** on average (from {float(by_set.min()):.2f} to "
    f"{float(by_set.max()):.2f} over {controls} random sets); without any DeltaNet layer "
    f"**{kept['without all DeltaNet']:.2f}**."
)

# %% [markdown]
# ## Where the half-lives come from: the initialisation
#
# In Gated DeltaNet *g* = −*A* softplus(*a* + *b*), with *a* from the token, and *A* and the bias *b* (`dt_bias`)
# learned per head. `transformers` initialises *b* = 1 and *A* up to 16: a fresh layer forgets nearly everything at
# every token, and must learn to remember before it can learn what to store. flash-linear-attention draws a time step
# *dt* log-uniformly from 0.001 to 0.1 and sets *b* to its inverse softplus, *b* = *dt* + ln(1 − exp(−*dt*)). The
# shipped toys use that initialisation ([how they were trained](../experiments/toy-checkpoints)). Below, two untrained
# models of a toy's shape and the checkpoint of this notebook read the same texts.


# %%
def fresh(start_with_memory):
    """An untrained model of the toy's shape, with either initialisation of the decay."""
    torch.manual_seed(0)
    model = type(toy.model)(toy.model.config).eval()
    if start_with_memory:
        for module in model.modules():
            if hasattr(module, "dt_bias"):
                dt = torch.empty_like(module.dt_bias).uniform_(np.log(0.001), np.log(0.1)).exp()
                module.dt_bias.data = dt + torch.log(-torch.expm1(-dt))
    return model


toy = ql.open("toy-dense")
with torch.no_grad():
    started = {"fresh, as transformers starts": fresh(False), "fresh, with dt from 0.001 to 0.1": fresh(True)}
    lives = {}
    for name, model in started.items():
        with ql.watch(model, ql.probes.DeltaNet(prediction_heads=0)) as seen:
            for domain in ql.tasks.DOMAINS:
                for text in ql.tasks.texts(domain, 2):
                    model(toy.tokenizer(text, return_tensors="pt").input_ids[:, :max_tokens], use_cache=False)
        lives[name] = ql.stats.half_life(seen.recording())
lives[f"{ckpt.anatomy.name}, trained"] = half_life


# %%
@ql.plots.style()
def start_figure():
    """How tokens spread over half-lives, over all layers and heads of each model."""
    colours = ["0.6", "#56B4E9", ql.plots.COLOURS["linear_attention"]]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, life), colour in zip(lives.items(), colours, strict=True):
        lower, share = life["half_life_bin"].values, life["half_life_share"].mean(["layer", "head"])
        label = f"{name}: median {medians[name]:.2g}"
        axes.stairs(share, [*lower, lower[-1] ** 2 / lower[-2]], label=label, color=colour, linewidth=1.5)
        axes.axvline(medians[name], color=colour, linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**power for power in range(-4, 21, 4)], ["1/16", "1", "16", "256", "4 k", "64 k", "1 M"])
    axes.set(xlabel="half-life of a token's decay (tokens)", ylabel="share of tokens", xlim=(2**-6, 2**20))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


medians = {name: float(life["half_life"].sel(quantile=0.5).median()) for name, life in lives.items()}
notebook.show("initialisation", start_figure(), "Half-lives of two untrained models and of the trained checkpoint.")
pd.Series(medians, name="half-life of the median token in the median head (tokens)").to_frame()

# %% [markdown]
# ## Look for yourself
#
# Choose a layer, a head and the texts. The figure is drawn from the recording; the model does not run again. (This
# needs a running kernel. A saved copy shows the last figure.)

# %%
explorer = ql.widgets.explore_layers(recording)
explorer

# %% [markdown]
# ## The table, and saved files
#
# The recording holds sums and counts with units, and their provenance: checkpoint hash, precision, device, kernels,
# versions and texts. `ql.Recording.open(path)` reads it on any machine, without torch.

# %%
notebook.save(recording=recording, cost_by_context=costs)


units = {name: f"{variable.attrs['long_name']} ({variable.attrs['units']})" for name, variable in layers.items()}
table = layers.to_dataframe().rename(columns=units).assign(kind=layers["kind"].to_series().map(ql.plots.LABELS))
table.style.format(precision=3, na_rep="–")
