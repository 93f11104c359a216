# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Routing: which experts do the work
#
# In a mixture-of-experts layer a router gives each token a probability *r* over all *E* experts. The *k* most likely
# experts run, weighted by their *r* normalised to sum to 1. A shared expert runs for every token. This notebook
# measures, on one checkpoint, how the load is spread, how confident the routers are, whether experts depend on the
# domain, which experts are chosen together, and how many experts a few consecutive tokens need.
#
# [The glossary](../docs/glossary.md) defines every quantity. Brackets and bands are 95 % intervals over texts unless
# noted: tokens of one text are not independent.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 16  # two or more for intervals
max_tokens: int = 256  # tokens of each text
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None saves nothing

# %%

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import qwenlab as ql

notebook = ql.notebook.start(out)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %% [markdown]
# ## Reading
#
# The plain model reads held-out texts of several domains inside `ql.watch`, labelled by domain. A dense checkpoint
# has no router: the next cell then raises `MissingPart`.

# %%
with ql.watch(ckpt, ql.probes.Routing(every=1)) as seen:
    for domain in ql.tasks.DOMAINS:
        with seen.label(domain):
            ql.tasks.feed(ckpt, ql.tasks.texts(domain, texts_per_domain), max_tokens=max_tokens)

recording = seen.recording()
recording

# %% [markdown]
# ## Load
#
# Each token fills *k* slots. The load of an expert is its share of all slots: 1/*E* under a uniform load. No finite
# sample is exactly uniform.

# %%
load = ql.stats.expert_load(recording)
notebook.show("expert_load", ql.plots.expert_load(load), "Share of slots of each expert in each layer.")

# %% [markdown]
# Load by domain. `variation` is the coefficient of variation of the loads over experts: 0 if they are equal.
# `entropy` is the entropy of the loads over ln *E*: 1 if they are equal.

# %%
by_domain = ql.stats.expert_load(recording, by_label=True)
pd.concat(
    {
        "variation": by_domain["variation"].to_pandas().T.assign(together=load["variation"].to_pandas()),
        "entropy": by_domain["normalised_entropy"]
        .to_pandas()
        .T.assign(together=load["normalised_entropy"].to_pandas()),
    },
    axis="columns",
)

# %% [markdown]
# ## Do experts depend on the domain?
#
# The specialisation of a layer is the mutual information between a token's domain and one of its experts: how many bits
# an expert reveals about the domain. Any finite sample gives more than 0 bits, and texts differ for reasons other than
# their domain. So the **control** shuffles the domains over whole texts and measures again.

# %%
special = ql.stats.specialisation(recording)
notebook.show(
    "specialisation",
    ql.plots.specialisation(special),
    "Information about the domain by layer, with the shuffled control.",
)

# %%
strongest = special.isel(layer=int(special["information"].argmax("layer")))
low, high = strongest["shuffled_interval"].values
beyond = int((special["p_value"] < 0.05).sum())
Markdown(
    f"In **{beyond} of {special.sizes['layer']} layers** experts reveal more about the domain than about shuffled "
    f"domains (p < 0.05; about {0.05 * special.sizes['layer']:.1f} layers by chance). The largest is layer "
    f"{int(strongest['layer'])}: **{float(strongest['information']):.3f} bits** of the domain's "
    f"{float(strongest['label_entropy']):.2f}, against {float(strongest['shuffled']):.3f} [{low:.3f}, {high:.3f}] "
    "with shuffled domains."
)

# %% [markdown]
# ## Router confidence
#
# The literature calls two different entropies "routing entropy". The **router entropy** is that of the full softmax
# over all experts, at most ln *E*. The entropy of the **top-k weights** is over the chosen experts only, at most ln
# *k*. The **margin** is the probability of the last expert chosen minus that of the first expert not chosen.

# %%
routed = ql.stats.routing(recording)
experts, top_k = recording["routing"].attrs["experts"], recording["routing"].attrs["top_k"]
print(f"ln E = {np.log(experts):.3f} nats (E = {experts}), ln k = {np.log(top_k):.3f} nats (k = {top_k})")
columns = {
    "router entropy (nats)": "entropy",
    "top-k entropy (nats)": "topk_entropy",
    "margin": "margin",
    "switch rate": "switch_rate",
    "switch rate by chance": "chance_switch_rate",
}
if "shared_share" in routed:
    columns |= {"gate of the shared expert": "shared_gate", "share of the shared expert": "shared_share"}
cells = {title: ql.notebook.intervals(routed, name) for title, name in columns.items()}
pd.DataFrame(cells, index=routed["layer"].to_index())

# %% [markdown]
# The **switch rate** is the share of a token's experts that the previous token did not use; by chance means for
# independent tokens at the same loads. The **share of the shared expert** is the norm of its gated output over the sum
# of the norms of the shared and the routed output.

# %% [markdown]
# ## Co-activation
#
# How often the same token chooses two experts, over the rate of independent choices at the same loads: above 1 they are
# chosen together more often than by chance, below 1 less often.

# %%
together = ql.stats.coactivation(recording)
notebook.show(
    "coactivation", ql.plots.coactivation(together), "Co-activation of each pair of experts over chance, by layer."
)

# %% [markdown]
# ## From layer to layer
#
# Experts of different layers share only their index, so they cannot be compared by name. The overlap says how well a
# token's first expert in one layer predicts its first expert in the next: 0 not at all, 1 exactly. `adjusted_overlap`
# is corrected for the bias of a finite sample.

# %%
if recording["routing"].sizes["layer"] > 1:
    overlap = ql.stats.layer_overlap(recording)
    display(
        overlap[["layer_next", "information", "information_independent", "overlap", "adjusted_overlap"]].to_dataframe()
    )

# %% [markdown]
# ## How many experts a few tokens need
#
# A machine with experts in slow memory must load, for *n* consecutive tokens, every expert that any of them chooses.
# `independent` is the number for *n* independent tokens at the same loads. Below it, neighbouring tokens share experts.

# %%
windows = ql.stats.distinct_experts(recording)
notebook.show(
    "distinct_experts",
    ql.plots.distinct_experts(windows),
    "Distinct experts in a window of n tokens, by layer, and by chance.",
)

# %% [markdown]
# ## Experts that are never used
#
# "Never used" is a statement about a sample. The curve shows how many experts were unused after *n* randomly drawn
# tokens. If it still falls at its end, more tokens would use more of them.

# %%
unused = ql.stats.unused_experts(recording)
notebook.show(
    "unused_experts", ql.plots.unused_experts(unused), "Unused experts against tokens read, by layer, with intervals."
)
never, tokens = unused["unused_final"], int(recording["routing"]["tokens"].isel(layer=0).sum())
print(
    f"after {tokens:,} tokens {int(never.sum())} of {experts * never.sizes['layer']:,} experts were never chosen; "
    f"an expert that {tokens:,} independent tokens never choose has a share below {3 / tokens:.2%} of tokens (95 %)"
)

# %% [markdown]
# ## Look for yourself
#
# Choose a layer, an expert and the texts. The figure is drawn from the recording; the model does not run again. (This
# needs a running kernel. A saved copy shows the last figure.)

# %%
explorer = ql.widgets.explore_routing(recording)
explorer

# %% [markdown]
# ## Saved files

# %%
notebook.save(recording=recording)
