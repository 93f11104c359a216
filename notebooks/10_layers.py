# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DeltaNet beside attention
#
# A hybrid model moves information between tokens by two kinds of mixer. **Attention** keeps the key and the value
# of every token and looks through all of them again at each new one. **DeltaNet** keeps one matrix a head, its
# state *S*, and at each token lets it decay, corrects it, and reads it:
#
# > S ← αS,  S ← S + k (β (v − Sᵀk))ᵀ,  o = Sᵀq
#
# with a decay α and a write strength β between 0 and 1 that each token sets anew (Yang et al. 2024,
# [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)).
#
# This notebook measures on one checkpoint how far back each kind reaches, how open its output gate is, what
# DeltaNet writes, what each kind costs as the context grows, and which of them carries recall. Every word used for
# a number is defined in [the glossary](../docs/glossary.md). Numbers in brackets are 95 % intervals over texts
# unless something else is said.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # intervals need two or more
max_tokens: int = 256  # read of each text
contexts: list[int] = [128, 512, 2048]  # lengths at which time and memory are measured, in tokens
decode_steps: int = 8  # tokens decoded after each of them
repeats: int = 3  # of each measurement of time
recall_texts: int = 16  # for each number of pairs
controls: int = 3  # sets of DeltaNet layers that are set against the attention layers
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None keeps nothing

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
# The model below is the plain one of `transformers`. It reads held-out texts of several domains inside `ql.watch`,
# and the probes keep sums and histograms of what passes, by domain, layer and head. `thorough` probes leave nothing
# out; `ql.probes.defaults` sample, and can stay on in a training loop. Watching changes no logit.

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
# One row a layer. `half-life` is of DeltaNet layers: in the median head, the median token lets half of the state
# decay within so many tokens. `attention distance` is of attention layers: how far back their queries look on
# average. Both are in tokens, so they can be set side by side; they are not the same thing, since a state that has
# half decayed still holds the other half.

# %%
layers = ql.stats.layer_table(recording)
notebook.show(
    "layers", ql.plots.layer_table(layers), "The layers in their order, by kind, with time, reach, gates and routing."
)

# %% [markdown]
# ## How far back
#
# A DeltaNet head that decays by α = exp(*g*) at a token has, at that token, a half-life of ln ½ / *g* tokens. The
# figure shows how the tokens of each head spread. The wider the spread, the more the head chooses token by token
# between keeping and forgetting.

# %%
half_life = ql.stats.half_life(recording)
notebook.show(
    "half_life",
    ql.plots.half_life(half_life),
    "Quantiles of the half-life over tokens, for each DeltaNet layer and head.",
)

# %% [markdown]
# Attention has no decay: its reach is where it puts its probability. The distance of a query is the mean of how
# many tokens back each key lies, weighted by the attention it gets; it cannot exceed what was read, so compare it
# only over the same texts.

# %%
distance = ql.stats.attention_distance(recording)
notebook.show(
    "attention_distance",
    ql.plots.attention_distance(distance),
    "Share of attention by distance, for each attention layer.",
)

# %% [markdown]
# The same two reaches by kind: over all heads, the quartiles of the half-life of the mean log decay (what a state
# really goes through, since decays multiply), and of the mean attention distance.

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
# Both kinds end in an output gate that decides, channel by channel, what of the mixer's output enters the residual
# stream. Its openness is the mean over channels of a sigmoid. The write strength β is DeltaNet's alone: 0 leaves
# the state as it is, 1 replaces all that the state held under the token's key.

# %%
gates = ql.stats.gates(recording)
notebook.show(
    "gates",
    ql.plots.gates(gates),
    "Histograms of the output gates of both kinds, and of DeltaNet's write strength.",
)

# %% [markdown]
# ## What is written
#
# Before a token writes, the state already holds something under its key. The prediction error ‖v − Sᵀk‖ / ‖v‖ is
# how far that was off: 1 if the state held nothing, below 1 if it knew part of the value, above 1 if it held
# something else. It is solved for from what the kernel was given; the state that comes out on the way is held to the
# kernel's own, and the largest distance between the two is printed below. The key collision is the mean squared
# cosine between the keys of two tokens: the floor is what keys spread evenly over all directions would have. All are
# means over the heads of a layer; `written` has them by head, with their intervals.

# %%
written, keys = ql.stats.writing(recording), ql.stats.key_collision(recording)
if "state_gap" in recording["deltanet"].attrs:
    print(f"our states and the kernel's differ by {recording['deltanet'].attrs['state_gap']:.1e} of their norm at most")
by_domain = ql.stats.writing(recording, by_label=True)["error_ratio"].mean("head").to_pandas().T.add_prefix("error: ")
pd.DataFrame(
    {
        "write strength": written["beta"].mean("head").to_pandas(),
        "update norm": written["update_norm"].mean("head").to_pandas(),
        "prediction error": written["error_ratio"].mean("head").to_pandas(),
        "state norm at the end": written["state_norm"].mean("head").to_pandas(),
        "key collision": keys["key_collision"].mean("key_head").to_pandas(),
        "its floor": float(keys["isotropic_floor"]),
    }
).join(by_domain)

# %% [markdown]
# ## What each part adds
#
# Every mixer and every MLP adds a vector to the residual stream. Its norm beside the stream's says how much; the
# cosine, in which direction: near 0 it adds something new, above 0 it strengthens what is there, below 0 it takes
# away.

# %%
notebook.show(
    "residual",
    ql.plots.residual(ql.stats.residual(recording)),
    "Size and direction of what mixers and MLPs add to the stream.",
)

# %% [markdown]
# ## Time, by kind
#
# Where the time of the layers went while the texts above were read (prefill). What the probes themselves cost is
# not in it.

# %%
notebook.show(
    "time_by_kind",
    ql.plots.time_by_kind(ql.stats.time_by_kind(recording)),
    "Share of the layers' time by kind and part.",
)

# %% [markdown]
# ## Cost by context length
#
# Attention has to go through all earlier tokens, DeltaNet through a state of one size. So the cost of a token grows
# with the context in one kind and not in the other. Measured below: the time of one mixer of each kind, for each
# token of a prefill of *n* tokens, and for one more token after it. Beside it is what the anatomy counts from the
# config alone: multiply-adds (as 2 FLOPs), and the bytes that must at least be moved.

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
    """Measured time beside counted FLOPs and bytes, of one mixer of each kind, a token."""
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


notebook.show(
    "cost_by_context", cost_figure(), "Time, FLOPs and bytes a token of one mixer of each kind, by context length."
)

# %% [markdown]
# Each point is the median of the repeats, the band goes from the fastest to the slowest. Where the measured ratio
# of the two kinds is not the counted one, the kernel is the reason: the recording says which delta rule ran
# (`kernel_delta_rule`), and on a CPU it is a reference written for clarity.


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
# predicted from the config, points are the bytes that the cache's tensors really held.

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
# In a recall text, key and value pairs are listed and the keys are asked for later, so that the right answer is
# known and has to come from the context. Below, the mixers of some layers are made to add nothing to the stream,
# with plain forward hooks:
#
# * all attention layers,
# * as many DeltaNet layers, drawn at random a few times: the **control**, since any layer that is taken out does
#   some harm,
# * all DeltaNet layers.
#
# A kind carries recall if taking it out costs more recall than taking out as many layers of the other kind. For all
# DeltaNet layers there is no such control, since there are fewer attention layers; so the loss on ordinary text
# says how much else broke. A model that has lost everything has lost recall too, and that tells nothing.

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
    """Recall by number of pairs; marks stand a little apart, so that those of one height are all seen."""
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
    axes.set(xlabel="pairs in the text", ylabel="asked-for values right (share)", ylim=(-0.02, 1.05), xscale="log")
    axes.set_xticks(PAIRS, [str(pairs) for pairs in PAIRS])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


notebook.show("recall", recall_figure(), "Recall by number of pairs, with the mixers of some layers taken out.")

# %%
rows = {}
for name in removals:
    (low, high), (best, worst) = interval(accuracy[name].sel(pairs=[asked]))[:, 0], interval(loss[name])
    rows[name] = {
        "layers taken out": len(removals[name][0]),
        f"recall at {asked} pairs": f"{float(accuracy[name].sel(pairs=asked).mean()):.2f} [{low:.2f}, {high:.2f}]",
        "loss on code and prose (nats a token)": f"{float(loss[name].mean()):.2f} [{best:.2f}, {worst:.2f}]",
    }
pd.DataFrame(rows).T

# %%
kept = {name: float(values.sel(pairs=asked).mean()) for name, values in accuracy.items()}
by_set = accuracy["without as many DeltaNet"].sel(pairs=asked).mean("text")
Markdown(
    f"At {asked} pairs this checkpoint gives **{kept['with all layers']:.2f}** of the values "
    f"(chance {chance:.2f}). Without its {len(attention)} attention layers it keeps "
    f"**{kept['without attention']:.2f}**; without as many DeltaNet layers "
    f"**{kept['without as many DeltaNet']:.2f}** on average, over {controls} sets drawn at random from "
    f"{float(by_set.min()):.2f} to {float(by_set.max()):.2f}; without any DeltaNet layer "
    f"**{kept['without all DeltaNet']:.2f}**."
)

# %% [markdown]
# ## Where the half-lives come from: the initialisation
#
# In Gated DeltaNet *g* = −*A* softplus(*a* + *b*), with *a* from the token, and *A* and the bias *b* (`dt_bias`)
# learnt by head. The classes of `transformers` start with *b* = 1 and *A* up to 16: a fresh layer forgets nearly
# everything at every token, and has to learn to remember before it can learn what. The layer of
# flash-linear-attention starts otherwise: it draws a time step *dt* log-uniformly from 0.001 to 0.1 and sets *b* to
# its inverse softplus, *b* = *dt* + ln(1 − exp(−*dt*)). The shipped toys were started like that ([how they were
# trained](../experiments/toy-checkpoints)). Below, two fresh models of a toy's shape and the checkpoint of this
# notebook read the same texts.


# %%
def fresh(start_with_memory):
    """A model of the toy's shape that has learnt nothing, with either initialisation of the decay."""
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
notebook.show(
    "initialisation", start_figure(), "Half-lives over tokens of two fresh models and of the trained checkpoint."
)
pd.Series(medians, name="half-life of the median token in the median head (tokens)").to_frame()

# %% [markdown]
# ## Look for yourself
#
# Choose a layer, a head and the texts. The figure follows from the recording; the model does not run again.
# (Choosing needs a running kernel. In a saved copy the figure stays as it was.)

# %%
explorer = ql.widgets.explore_layers(recording)
explorer

# %% [markdown]
# ## The table, and what is kept
#
# The recording holds sums and counts with their units and where they came from: checkpoint hash, precision, device,
# kernels, versions, texts. `ql.Recording.open(path)` reads it back on any machine, without torch.

# %%
notebook.save(recording=recording, cost_by_context=costs)


units = {name: f"{variable.attrs['long_name']} ({variable.attrs['units']})" for name, variable in layers.items()}
table = layers.to_dataframe().rename(columns=units).assign(kind=layers["kind"].to_series().map(ql.plots.LABELS))
table.style.format(precision=3, na_rep="–")
