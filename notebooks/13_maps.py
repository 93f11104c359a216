# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention maps of DeltaNet and of attention
#
# The output of an attention head is a weighted sum of earlier tokens' values, and the weights can be drawn as a map. A
# DeltaNet head reads a state instead. But its output is a weighted sum of earlier values too: each token does S ← αS,
# then S ← S + k (β (v − Sᵀk))ᵀ, and reads *o* = Sᵀq. Unrolled, o is the sum over tokens s ≤ t of w(t, s) vₛ with
#
# > w(t, s) = βₛ kₛᵀ Mₛ₊₁ ⋯ Mₜ qₜ,  Mᵢ = αᵢ (I − βᵢ kᵢkᵢᵀ)
#
# or, as matrices over a text, W = (QKᵀ ∘ D) (I + tril₋₁(diag(β) KKᵀ ∘ D))⁻¹ diag(β) with D(t, s) = αₛ₊₁ ⋯ αₜ
# (Yang et al. 2024, [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)). These weights are the
# head's **implicit attention**: exact, signed, and not normalised to sum to 1. αᵢ is the decay; the factor in brackets
# removes what was stored under a key that is written again.
#
# This notebook describes heads of both kinds with the same statistics, on code, prose and recall. [The
# glossary](../docs/glossary.md) defines every quantity. Brackets are 95 % intervals over texts unless noted. Two
# notes on reading a DeltaNet map: it shows the output before the head's norm and gate; and keys and values have
# passed a short convolution, so the value of a token also contains the few tokens before it.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # two or more for intervals
max_tokens: int = 256  # tokens of each text
every: int = 2  # measure the row of every n-th token
pairs: int = 8  # pairs in each recall text; each is queried once
recall_texts: int = 32  # half to choose heads, half to measure them; four or more
map_tokens: int = 56  # of the code and prose texts whose maps are stored
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recordings, the table and the figures; None saves nothing

# %%

import numpy as np
import pandas as pd
from IPython.display import Markdown

import qwenlab as ql

interval = ql.notebook.interval
notebook = ql.notebook.start(out, formats=("png", "svg", "pdf"))


def best(values, kind):
    """The layer and the head of this kind in which a number [layer, head] is largest."""
    here = values.where(values["kind"] == kind, drop=True).stack(one=("layer", "head")).dropna("one")
    return here["one"].values[int(np.argmax(here.values))]


def each_head(data):
    """Layer, head and their statistics, of every head of both kinds."""
    for layer in data["layer"].values:
        for head in data["head"].values:
            one = data.sel(layer=layer, head=head)
            if one[next(iter(data))].notnull().any():
                yield int(layer), int(head), one


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
DELTANET, ATTENTION = "linear_attention", "full_attention"
ckpt

# %% [markdown]
# ## Reading
#
# The plain model reads texts of three domains inside `ql.watch`. Distances depend on the length of a text, so all texts
# are cut to the same number of tokens; recall texts repeat their questions to reach it. The probes compute the weights
# of a sample of tokens, reduce them at once, and do not store them.

# %%
domains = {domain: ql.tasks.texts(domain, texts_per_domain) for domain in ("code", "prose")}
domains["recall"] = ql.tasks.recall_texts(pairs, texts_per_domain, questions=max_tokens)
lengths = {
    domain: [min(max_tokens, len(ckpt.tokenizer(text).input_ids)) for text in texts]
    for domain, texts in domains.items()
}

probes = ql.probes.ImplicitAttention(every=every, without_removal=True), ql.probes.SoftmaxAttention(every=every)
with ql.watch(ckpt, *probes) as seen:
    for domain, texts in domains.items():
        with seen.label(domain):
            ql.tasks.feed(ckpt, texts, batch_size=4, max_tokens=max_tokens)

recording = seen.recording()
recording

# %%
shortest, longest = min(map(min, lengths.values())), max(map(max, lengths.values()))
Markdown(
    f"{texts_per_domain} texts of each domain were read, "
    + (
        f"all of {longest} tokens."
        if shortest == longest
        else f"**of {shortest} to {longest} tokens**: differences between domains may come from their lengths."
    )
)

# %% [markdown]
# ## Are these the weights?
#
# Each row of weights is multiplied by the values and compared with the kernel's output. The reconstruction error is the
# norm of the difference over the norm of that output, by head, over all rows. An error beyond rounding would have
# stopped the probe.
#
# The figure also shows weights without key removal, Mᵢ = αᵢ, which treat the state as a sum of decayed writes. For
# layers without a delta rule these are exact (Ali et al. 2024, [arXiv:2403.01590](https://arxiv.org/abs/2403.01590)).
# Here, an error of 1 (dashed) is as bad as predicting zero.

# %%
reach = ql.stats.reach(recording)
notebook.show(
    "reconstruction",
    ql.plots.reconstruction(reach),
    "Reconstruction error of the kernel's output by head, with and without key removal.",
)

# %%
errors = reach[["reconstruction_error", "without_removal_error"]].where(reach["kind"] == DELTANET, drop=True)
pd.DataFrame(
    {
        "reconstruction error, worst head (1)": errors["reconstruction_error"].max("head").to_series(),
        "without key removal, median head (1)": errors["without_removal_error"].median("head").to_series(),
        "without key removal, worst head (1)": errors["without_removal_error"].max("head").to_series(),
    }
).style.format("{:.2g}")

# %%
without = errors["without_removal_error"].stack(one=("layer", "head")).dropna("one")
Markdown(
    f"The weights reproduce the kernel's output to **{float(errors['reconstruction_error'].max()):.1e}** of its norm "
    f"in the worst head. Without key removal the median head is off by **{float(without.median()):.2g}** of the norm, "
    f"and {int((without > 1).sum())} of {without.size} heads by more than the norm itself."
)

# %% [markdown]
# ## The same statistics for both kinds
#
# The **mass** of a row is |w(t, s)| over its sum: the probability of an attention head, the share of absolute weight
# of a DeltaNet head. All statistics below are of mass and apply to both kinds.
#
# The **influence horizon** is the distance within which half, or nine tenths, of the mass lies. The figure has the mass
# within each distance, one thin line per head. A horizon is where it crosses a dashed line.

# %%
notebook.show(
    "mass_by_distance",
    ql.plots.mass_by_distance(reach),
    "Share of the mass within each distance, by head, for both kinds.",
)

# %% [markdown]
# By head, in the same order in every panel:
#
# * horizons, from half to nine tenths of the mass [tokens];
# * entropy of the mass [nats]: its exponential is the effective number of tokens in a row;
# * mass on the first token, the usual sink of softmax heads, and the first token's share of the output, which also
#   depends on the norm of its value;
# * mass on the previous token;
# * induction score: mass on the tokens right after earlier occurrences of the same token (Olsson et al. 2022,
#   [arXiv:2209.11895](https://arxiv.org/abs/2209.11895)). Grey is the score of uniform weights: only heads above it do
#   induction;
# * share of negative weight, for DeltaNet only. The overall sign of a head has no meaning, so a share near 0 or 1 is
#   one-sided, and ½ is the most mixed.

# %%
notebook.show(
    "reach", ql.plots.reach(reach), "Horizons, entropy, sink, previous token, induction and negative weight, by head."
)

# %%
COLUMNS = {
    "distance": "mean distance (tokens)",
    "entropy": "entropy (nats)",
    "first_mass": "first token (share)",
    "previous_mass": "previous token (share)",
    "induction": "induction (share)",
    "induction_lift": "induction over uniform weights (1)",
    "negative": "negative (share)",
}


def table(data):
    """Every head's numbers with their intervals."""
    rows = []
    for layer, head, one in each_head(data):
        row = {"layer": layer, "head": head, "kind": ql.plots.LABELS[str(one["kind"].values)]}
        for share in data["share"].values:
            row[f"{100 * share:.0f} % horizon (tokens)"] = interval(one.sel(share=share), "horizon")
        row |= {title: interval(one, name) if not np.isnan(one[name]) else "–" for name, title in COLUMNS.items()}
        rows.append(row)
    return pd.DataFrame(rows).set_index(["layer", "head"])


heads = table(reach)
heads

# %%
farthest = reach["horizon"].sel(share=0.9, drop=True)


def of_kind(values, kind):
    """A number [layer, head] of the heads of one kind."""
    return values.where(values["kind"] == kind, drop=True)


def medians(values, show="{:.2f}"):
    """The median DeltaNet head's number, and the median attention head's."""
    return [show.format(float(of_kind(values, kind).median())) for kind in (DELTANET, ATTENTION)]


within, before = medians(farthest, "{:.0f}"), medians(reach["previous_mass"])
made_of = medians(np.exp(reach["entropy"]), "{:.1f}")
ranges = of_kind(farthest, DELTANET)
Markdown(
    f"In the median DeltaNet head nine tenths of the mass lie within **{within[0]} tokens**, in the median attention "
    f"head within **{within[1]}**; DeltaNet heads range from {float(ranges.min()):.0f} to {float(ranges.max()):.0f}. "
    f"The previous token gets {before[0]} of the mass in the median DeltaNet head, and {before[1]} in the median "
    f"attention head. The effective number of tokens in a row is {made_of[0]} and {made_of[1]}."
)

# %% [markdown]
# ## Code, prose, recall
#
# The same heads on other texts. Each mark is a head; on the grey line both texts give the same value.

# %%
by_domain = ql.stats.reach(recording, by_label=True)
notebook.show(
    "domains",
    ql.plots.reach_by_label(by_domain, against="prose"),
    "Statistics of every head on code and on recall against those on prose.",
)

# %% [markdown]
# How many heads differ between domains? The table counts heads whose intervals on the two domains do not overlap,
# widened for the number of heads (Bonferroni: level 1 − 0.05 / heads), and names the head of each kind that differs
# most (layer.head). It uses the mean distance, because a horizon is an integer number of tokens and its interval is too
# coarse.

# %%
number = {kind: sum(str(one["kind"].values) == kind for *_, one in each_head(reach)) for kind in (DELTANET, ATTENTION)}
level = 1 - 0.05 / sum(number.values())
wide = ql.stats.reach(recording, by_label=True, level=level)


def moved(name, domain, kind):
    """In which heads the interval on a domain does not meet that on prose: the change in those, NaN in others."""
    here = of_kind(wide[[name, f"{name}_interval"]], kind)
    there, prose = here.sel(label=domain, drop=True), here.sel(label="prose", drop=True)
    low, high, other_low, other_high = (
        each[f"{name}_interval"].sel(bound=bound, drop=True) for each in (there, prose) for bound in ("low", "high")
    )
    return (there[name] - prose[name]).where((low > other_high) | (other_low > high))


def in_words(name, domain, kind):
    """How many heads differ, and what the one that differs most does on prose and there."""
    change = moved(name, domain, kind)
    if not change.notnull().any():
        return f"0 of {number[kind]}"
    layer, head = best(abs(change), kind)
    before, after = (float(wide[name].sel(label=label, layer=layer, head=head)) for label in ("prose", domain))
    return f"{int(change.notnull().sum())} of {number[kind]}; {layer}.{head}: {before:.3g} → {after:.3g}"


pd.DataFrame(
    {
        (f"prose → {domain}", ql.plots.LABELS[kind]): {
            title: in_words(name, domain, kind)
            for name, title in COLUMNS.items()
            if (name, kind) != ("negative", ATTENTION)
        }
        for domain in ("code", "recall")
        for kind in (DELTANET, ATTENTION)
    }
).fillna("–")

# %%
lines = []
for domain in ("code", "recall"):
    for kind in (DELTANET, ATTENTION):
        names = [name for name in COLUMNS if (name, kind) != ("negative", ATTENTION)]
        counts = {name: int(moved(name, domain, kind).notnull().sum()) for name in names}
        most, distance = max(counts, key=counts.get), moved("distance", domain, kind)
        heads_of_kind = f"* prose → {domain}, {ql.plots.LABELS[kind]}: "
        lines.append(
            f"{heads_of_kind}**{counts[most]} of {number[kind]} heads** differ in {COLUMNS[most]}, more than in any "
            f"other; {int((distance < 0).sum())} look less far back on {domain}, {int((distance > 0).sum())} further"
            if counts[most]
            else f"{heads_of_kind}no head differs in any of these"
        )
Markdown("\n".join(lines))

# %% [markdown]
# ## From a question to its answer
#
# A recall text lists pairs ` k:7` and queries them later, ` k?7`. The model has to predict the value at the question
# mark. A head that looks it up must put weight there on the token of the value listed with this key.
#
# * **retrieval**: mass on the queried value, at the question mark;
# * its **control**: mean mass on the values of the other pairs in the list. A head that attends to values, to digits,
#   or far back gives as much to those;
# * **picked**: how often the queried value has more weight than that of any other pair; 1 / pairs by chance.
#
# Each pair is queried once, so that no answer can be copied from an earlier one.

# %%
asked = ql.tasks.recall_texts(pairs, recall_texts, seed=1)
questions = ql.tasks.recall_questions(ckpt, asked)
rows = sorted(set(questions["query"].values.tolist()))
with ql.watch(ckpt, ql.probes.ImplicitAttention(queries=rows), ql.probes.SoftmaxAttention(queries=rows)) as seen:
    ql.tasks.feed(ckpt, asked, max_tokens=None)
at_questions = seen.recording()

retrieval = ql.stats.retrieval(at_questions, questions)
notebook.show(
    "retrieval",
    ql.plots.retrieval(retrieval),
    "Mass on the queried value and on the control, and how often it is picked, by head.",
)

# %% [markdown]
# The best of many heads looks better than it is. So one half of the texts selects heads, and the other half measures
# them. Selected heads have significantly more mass on the queried value than on the control, with intervals widened as
# above. The table has the first ten.

# %%
half = questions["text"] % 2 == 0
choosing = ql.stats.retrieval(at_questions, questions.isel(question=half.values), level=level)
measured = ql.stats.retrieval(at_questions, questions.isel(question=~half.values))
beyond = choosing["advantage"].where(choosing["advantage_interval"].sel(bound="low") > 0)
order = beyond.to_series().dropna().sort_values(ascending=False).index
pd.DataFrame(
    [
        {
            "layer": layer,
            "head": head,
            "kind": ql.plots.LABELS[str(measured["kind"].sel(layer=layer).values)],
            "retrieval (share of mass)": interval(measured.sel(layer=layer, head=head), "retrieval"),
            "control (share of mass)": interval(measured.sel(layer=layer, head=head), "control"),
            "picked (share of questions)": interval(measured.sel(layer=layer, head=head), "picked"),
        }
        for layer, head in order[:10]
    ]
)

# %%
right = ql.tasks.measure(ckpt, [ql.tasks.recall_task(ckpt, asked)])["accuracy"]
chosen = {kind: best(choosing["advantage"], kind) for kind in (DELTANET, ATTENTION)}
lines = [
    f"On these texts the model itself answers **{float(right.mean()):.2f}** of the questions "
    f"(chance {float(right['chance'][0]):.2f})."
]
for kind, (layer, head) in chosen.items():
    one, found = measured.sel(layer=layer, head=head), int(of_kind(beyond, kind).notnull().sum())
    name, picked = ql.plots.LABELS[kind], interval(one, "picked")
    picked = (
        f"all {measured.attrs['questions']}"
        if float(one["picked"]) == 1
        else f"{picked} of the {measured.attrs['questions']}"
    )
    lines.append(
        f"**{found} of {number[kind]} {name} heads** attend to the queried value. The one chosen, head {head} of "
        f"layer {layer}, puts {interval(one, 'retrieval')} of its mass there and {interval(one, 'control')} on "
        f"another pair's value; in **{picked}** questions it has most weight of all {pairs} values "
        f"(chance {float(one['chance']):.3g})."
    )
Markdown("\n\n".join(lines))

# %% [markdown]
# Weight is not use: later layers may ignore the output of a head that attends to the answer. Only an ablation would
# tell.
#
# ## Maps
#
# The maps of three short texts are stored in full: rows are queries, columns the tokens whose values they read. First
# the two heads selected above, on a recall text that was not used to select them. Frames mark the weight from each
# question mark to the queried value.

# %%
short = {
    **{
        domain: ql.tasks.passages(ckpt, domains[domain][0], tokens=map_tokens, count=1)[0]
        for domain in ("code", "prose")
    },
    "recall": asked[1],
}
with ql.watch(
    ckpt, ql.probes.ImplicitAttention(every=1, queries="all"), ql.probes.SoftmaxAttention(every=1, queries="all")
) as seen:
    for text in short.values():
        ql.tasks.feed(ckpt, [text], max_tokens=None)
maps = seen.recording()

names = [[ckpt.tokenizer.decode([token]) for token in ckpt.tokenizer(text).input_ids] for text in short.values()]
CODE, PROSE, RECALL = range(3)
own = questions.isel(question=(questions["text"] == 1).values)
frames = [
    (query, value[pair])
    for query, value, pair in zip(*(own[name].values.tolist() for name in ("query", "value", "asked")), strict=True)
]


def maps_of(text, heads):
    return [ql.stats.attention_map(maps, layer=layer, head=head, text=text) for layer, head in heads]


notebook.show(
    "maps_recall",
    ql.plots.attention_map(maps_of(RECALL, chosen.values()), tokens=names[RECALL], marks=frames),
    "Maps of a DeltaNet and an attention head on a recall text; frames mark answers.",
)

# %% [markdown]
# On prose: the DeltaNet head with the longest horizon (nine tenths of the mass), and the attention head with the
# highest induction score over uniform weights.

# %%
furthest = {
    DELTANET: best(farthest, DELTANET),
    ATTENTION: best(reach["induction_lift"], ATTENTION),
}
notebook.show(
    "maps_prose",
    ql.plots.attention_map(maps_of(PROSE, furthest.values()), tokens=names[PROSE]),
    "Maps of a DeltaNet and an attention head on prose.",
)

# %% [markdown]
# Choose a text, a layer and a head. The map is drawn from the recording; the model does not run again. (This needs a
# running kernel. A saved copy shows the last map.)

# %%
explorer = ql.widgets.explore_maps(maps, tokens=dict(enumerate(names)), marks={RECALL: frames})
explorer["text"].value = RECALL
explorer["layer"].value, explorer["head"].value = (int(each) for each in chosen[DELTANET])
explorer

# %% [markdown]
# ## Output gates, and the sink
#
# A gate scales each channel of an attention head's output: *o* ∘ sigmoid(gate). Its mean value is the mean of the
# sigmoid over channels. The figure shows it at every token of the prose, one row per head:

# %%
layers_of_attention = [int(layer) for layer in reach["layer"].values if reach["kind"].sel(layer=layer) == ATTENTION]
heads_of_attention = [
    (layer, int(head)) for layer in layers_of_attention for head in maps["softmax_attention"]["head"].values
]
notebook.show(
    "openness",
    ql.plots.gate_by_token(maps_of(PROSE, heads_of_attention), tokens=names[PROSE]),
    "Mean value of each attention head's output gate by token.",
)

# %% [markdown]
# Over all texts, by token class. A token with a leading space is the beginning of a word.


# %%
def class_of(position, token):
    """What kind of token this is."""
    bare = token.strip()
    if position == 0:
        return "first of its text"
    if not bare:
        return "white space"
    if bare[0].isalpha():
        return "a word's beginning" if token[0].isspace() else "inside a word"
    return "digits" if bare[0].isdigit() else "punctuation"


gate_probe = ql.probes.Attention(every=1)
with ql.watch(ckpt, gate_probe) as seen:
    for text in (text for texts in domains.values() for text in texts):
        tokens = [ckpt.tokenizer.decode([token]) for token in ckpt.tokenizer(text).input_ids[:max_tokens]]
        with seen.label([[class_of(position, token) for position, token in enumerate(tokens)]]):
            ql.tasks.feed(ckpt, [text], max_tokens=max_tokens)

gates = ql.stats.gates(seen.recording(), by_label=True)
by_class = pd.DataFrame(
    [
        {
            "layer": layer,
            "head": head,
            **{str(label): interval(one.sel(label=label), "mean_gate") for label in gates["label"].values},
        }
        for layer, head, one in each_head(gates)
    ]
).set_index(["layer", "head"])
by_class

# %% [markdown]
# Attention probabilities sum to 1, and many models put what they do not need on the first token: the **sink**. A gate
# that can close makes that unnecessary (Qiu et al. 2025, [arXiv:2505.06708](https://arxiv.org/abs/2505.06708)). The
# figure has the first token's share, for every attention head:
#
# * of the mass, the raw probability; grey: with uniform weights;
# * of the output with the **gate off**: its share of the norms p(t, s) ‖vₛ‖, summed over rows;
# * of the output with the **gate on**: its share of p(t, s) ‖sigmoid(gateₜ) ∘ vₛ‖.
#
# Gate off and gate on are computed from the same forward pass, for the output of this head only. They do not show what
# the model would do without its gates.

# %%
notebook.show("sink", ql.plots.sink(reach), "The first token's share of mass and of output, with the gate off and on.")

# %%
sinks = ql.stats.reach(recording, level=level)
sinks = sinks[["first_mass", "first_mass_interval", "first_even", "output_first", "gated_output_first"]]
sinks = sinks.where(sinks["kind"] == ATTENTION, drop=True)
above = int((sinks["first_mass_interval"].sel(bound="low") > sinks["first_even"]).sum())
less = int((sinks["gated_output_first"] < sinks["output_first"]).sum())
middle = {name: f"{float(sinks[name].median()):.3g}" for name in sinks}
classes = gates["mean_gate"].mean(["layer", "head"]).to_series().sort_values()
Markdown(
    f"**{above} of {number[ATTENTION]} attention heads** give the first token significantly more than uniform "
    f"weights do; the median head gives it {middle['first_mass']} of its mass, uniform weights {middle['first_even']}. "
    f"Its share of the output is {middle['output_first']} with the gate off and {middle['gated_output_first']} with "
    f"the gate on (medians over heads); the gate lowers it in {less} of {number[ATTENTION]} heads. The gates of all "
    f"attention heads are most open at tokens of the class *{classes.index[-1]}* ({classes.iloc[-1]:.2f}) and least "
    f"open at *{classes.index[0]}* ({classes.iloc[0]:.2f})."
)

# %% [markdown]
# ## Saved files
#
# Three recordings: the statistics over all texts, the rows at the questions, and the full maps of the short texts.
# `ql.Recording.open(path)` reads them on any machine, without torch. Figures are saved as PNG, and as SVG and PDF for
# print.

# %%
notebook.save(recording=recording, questions=at_questions, maps=maps, heads=heads)
