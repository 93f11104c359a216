# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Who does the work: routing
#
# In a mixture-of-experts layer a router gives each token a probability *r* over all *E* experts. The *k* with the
# largest are run, weighted by their *r* made to sum to 1; a shared expert runs for every token beside them. This
# notebook measures on one checkpoint how the work is spread, how sure the routers are, whether experts know what
# they read, which of them go together, and how many a few tokens in a row need.
#
# Every word used for a number is defined in [the glossary](../docs/glossary.md). Numbers in brackets and bands are
# 95 % intervals over texts unless something else is said: tokens of one text resemble one another, so texts are
# counted, not tokens.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 16  # intervals need two or more
max_tokens: int = 256  # read of each text
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None keeps nothing

# %%

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

import qwenlab as ql

notebook = ql.notebook.start(out)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %% [markdown]
# ## Reading
#
# Held-out texts of several domains go through the plain model inside `ql.watch`, each under the name of its domain.
# A checkpoint with dense layers has no router: on one, the next cell ends the notebook with `NothingToProbe`.

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
# The load of an expert is its share of all slots, of which each token has *k*. If the work were spread evenly, each
# expert would have 1/*E*. No finite sample is quite even.

# %%
load = ql.stats.expert_load(recording)
notebook.show("expert_load", ql.plots.expert_load(load), "Share of slots of each expert in each layer.")

# %% [markdown]
# By domain the same experts are used differently. `variation` is the coefficient of variation of the loads over
# experts: 0 where all are alike. `entropy` is that of the loads over ln *E*: 1 where all are alike.

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
# ## Do experts know what they read?
#
# The specialisation of a layer is the mutual information between a token's domain and one of its experts: how many
# bits one learns of the domain by being told an expert. Any sample gives more than 0 bits, and texts differ for
# other reasons than their domain. So the **control** shuffles the domains over whole texts (kept in the folds of
# the recording) and measures again: what is left is chance.

# %%
special = ql.stats.specialisation(recording)
notebook.show(
    "specialisation",
    ql.plots.specialisation(special),
    "Information on the domain by layer, beside the shuffled control.",
)

# %%
strongest = special.isel(layer=int(special["information"].argmax("layer")))
low, high = strongest["shuffled_interval"].values
beyond = int((special["p_value"] < 0.05).sum())
Markdown(
    f"In **{beyond} of {special.sizes['layer']} layers** experts tell more of the domain than shuffled domains do "
    f"(p < 0.05; by chance alone it would be about {0.05 * special.sizes['layer']:.1f} layers). Most does layer "
    f"{int(strongest['layer'])}: **{float(strongest['information']):.3f} bits** of the domain's "
    f"{float(strongest['label_entropy']):.2f}, beside {float(strongest['shuffled']):.3f} [{low:.3f}, {high:.3f}] "
    "with the domains shuffled."
)

# %% [markdown]
# ## How sure
#
# Two different entropies are both called "routing entropy" in the literature. The **router entropy** is that of the
# full softmax over all experts, ln *E* at most. The entropy of the **top-k weights** knows only the chosen ones, ln
# *k* at most. The **margin** is the probability of the last expert chosen less that of the first not chosen: how
# near the choice was to another.

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
# The **switch rate** is the share of a token's experts that the token before it did not have, beside what tokens
# that know nothing of one another would show at the same loads. The **share of the shared expert** is the norm of
# its gated output over the sum of the norms of both outputs: how much of the layer is not routed at all.

# %% [markdown]
# ## Which experts go together
#
# How often two experts are chosen by the same token, over what independent choices at the same loads would give:
# above 1 they seek each other's company, below 1 they avoid it.

# %%
together = ql.stats.coactivation(recording)
notebook.show(
    "coactivation", ql.plots.coactivation(together), "Co-activation of each pair of experts over chance, by layer."
)

# %% [markdown]
# ## From layer to layer
#
# Experts of different layers have nothing in common but their number, so they are not compared by name. The overlap
# says how much a token's first expert in one layer tells of its first expert in the next: 0 nothing, 1 all;
# `adjusted` has the bias of a finite sample taken out.

# %%
if recording["routing"].sizes["layer"] > 1:
    overlap = ql.stats.layer_overlap(recording)
    display(
        overlap[["layer_next", "information", "information_independent", "overlap", "adjusted_overlap"]].to_dataframe()
    )

# %% [markdown]
# ## How many experts a few tokens need
#
# A machine that keeps experts in slow memory has to hold, for *n* tokens in a row, every expert one of them chose.
# `independent` is what *n* tokens that know nothing of one another would need at the same loads; below it,
# neighbours share their experts.

# %%
windows = ql.stats.distinct_experts(recording)
notebook.show(
    "distinct_experts",
    ql.plots.distinct_experts(windows),
    "Distinct experts in a window of n tokens, by layer, beside chance.",
)

# %% [markdown]
# ## Experts that are never used
#
# "Never used" is a statement about a sample. The curve shows how many experts no token had chosen after *n* tokens,
# drawn at random from those read. Where it still falls at its end, more reading would find more of them in use.

# %%
unused = ql.stats.unused_experts(recording)
notebook.show(
    "unused_experts",
    ql.plots.unused_experts(unused),
    "Experts not yet used against tokens read, by layer, with intervals.",
)
never, tokens = unused["unused_final"], int(recording["routing"]["tokens"].isel(layer=0).sum())
print(
    f"after {tokens:,} tokens {int(never.sum())} of {experts * never.sizes['layer']:,} experts were never chosen; "
    f"one that is never chosen in so many independent tokens is chosen by less than {3 / tokens:.2%} of tokens (95 %)"
)

# %% [markdown]
# ## Look for yourself
#
# Choose a layer, an expert and the texts. The figure follows from the recording; the model does not run again.
# (Choosing needs a running kernel. In a saved copy the figure stays as it was.)

# %%
explorer = ql.widgets.explore_routing(recording)
explorer

# %% [markdown]
# ## What is kept

# %%
notebook.save(recording=recording)
