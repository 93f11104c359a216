# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What an output is made of: maps of both kinds
#
# The output of an attention head is a sum of earlier tokens' values, each with a weight that can be drawn as a map.
# A DeltaNet head has no such weights: it reads a state. But what it reads is a sum of earlier values too, since each
# token does S ← αS, then S ← S + k (β (v − Sᵀk))ᵀ, and reads *o* = Sᵀq. Unrolled, o is the sum over tokens s ≤ t of
# w(t, s) vₛ with
#
# > w(t, s) = βₛ kₛᵀ Mₛ₊₁ ⋯ Mₜ qₜ,  Mᵢ = αᵢ (I − βᵢ kᵢkᵢᵀ)
#
# or, in matrices over a text, W = (QKᵀ ∘ D) (I + tril₋₁(diag(β) KKᵀ ∘ D))⁻¹ diag(β) with D(t, s) = αₛ₊₁ ⋯ αₜ
# (Yang et al. 2024, [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)). These are the head's **implicit attention**:
# exact, signed, and not made to add up to 1. αᵢ is the decay; the bracket removes what an earlier token had stored
# under a key that is written again.
#
# This notebook tells the heads of both kinds in one vocabulary, on code, prose and recall. Every word used for a
# number is in [the glossary](../docs/glossary.md). Numbers in brackets are 95 % intervals over texts unless something
# else is said. Two things to keep in mind while reading a map of DeltaNet: it ends before the head's output norm and
# gate, and keys and values have been through a short convolution, so that the value of a token holds something of the
# few before it.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # intervals need two or more
max_tokens: int = 256  # read of each text
every: int = 2  # the row of one token of so many is measured; 1 measures all
pairs: int = 8  # listed in each text of the task of recall, and each asked for once
recall_texts: int = 32  # of that task: half of them to choose heads, half to measure them; four or more
map_tokens: int = 56  # of the code and of the prose whose maps are kept
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recordings, the table and the figures; None keeps nothing

# %%

import numpy as np
import pandas as pd
import torch
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
# The plain model reads texts of three domains inside `ql.watch`. All that is said below of distances changes with the
# length of what is read, so all texts are cut to the same number of tokens; those of recall ask for their pairs again
# and again until they are as long. The probes work out the rows of a sample of tokens, reduce each at once, and forget
# it.

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
        else f"**of {shortest} to {longest} tokens**: differences between domains may be differences of length."
    )
)

# %% [markdown]
# ## Are these the weights?
#
# Each measured row is multiplied by the values and held to the output that the kernel returned. The reconstruction
# error is the norm of the difference over the norm of that output, by head, over all rows measured. Beyond rounding,
# the probe would have refused to go on.
#
# Beside it stands the same for weights without the removal of keys, Mᵢ = αᵢ: how a state is read if it is taken for a
# sum of decayed writes. In layers without a delta rule those would be exact (Ali et al. 2024,
# [arXiv:2403.01590](https://arxiv.org/abs/2403.01590)). Here an error of 1 (dashed) is as far off as no output at all.

# %%
reach = ql.stats.reach(recording)
notebook.show(
    "reconstruction",
    ql.plots.reconstruction(reach),
    "Distance of the output made of the weights from the kernel's, by head, with and without key removal.",
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
    f"The weights make the kernel's output to **{float(errors['reconstruction_error'].max()):.1e}** of its norm in the "
    f"worst head. Without key removal the median head is off by **{float(without.median()):.2g}** of the norm, and "
    f"{int((without > 1).sum())} of {without.size} heads by more than the norm itself."
)

# %% [markdown]
# ## One vocabulary
#
# A row's **mass** is |w(t, s)| over its sum: of an attention head its probability, of a DeltaNet head the share of
# its absolute weight. All that follows is said of mass, in the same words for both kinds.
#
# The **influence horizon** is the distance within which half, or nine tenths, of the mass lies. Below is the mass
# within every distance, a thin line a head; the horizons are where a line crosses the dashed ones.

# %%
notebook.show(
    "mass_by_distance",
    ql.plots.mass_by_distance(reach),
    "Share of the mass within each distance, for every head of both kinds.",
)

# %% [markdown]
# Head by head, the heads of a layer side by side in the same order in every panel:
#
# * horizons, from half to nine tenths of the mass [tokens];
# * entropy of the mass [nats]: its exponential is the number of tokens that a row is effectively made of;
# * mass on the first token, the usual sink of softmax heads, and the first token's share of the output, in which the
#   size of its value counts too;
# * mass on the token before;
# * induction score: mass on what came right after earlier occurrences of the same token (Olsson et al. 2022,
#   [arXiv:2209.11895](https://arxiv.org/abs/2209.11895)). What even weights would give is grey, and a head is only
#   remarkable if it is above that;
# * share of negative weight, DeltaNet's alone. The sign of a whole head means nothing (its queries and what comes
#   after it could both be negated), so a share near 0 or near 1 is one-sided, and ½ is the most mixed.

# %%
notebook.show(
    "reach", ql.plots.reach(reach), "Horizons, entropy, sink, previous token, induction and negative weight, by head."
)

# %%
COLUMNS = {
    "distance": "mean distance (tokens)",
    "entropy": "entropy (nats)",
    "first_mass": "first token (share)",
    "previous_mass": "token before (share)",
    "induction": "induction (share)",
    "induction_lift": "induction over even weights (1)",
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
    f"The token before gets {before[0]} of the mass in the median DeltaNet head, and {before[1]} in the median "
    f"attention head. A row is effectively made of {made_of[0]} tokens in the one, and of {made_of[1]} in the other."
)

# %% [markdown]
# ## Code, prose, recall
#
# The same heads on other texts. A mark is a head; on the grey line it does the same on both.

# %%
by_domain = ql.stats.reach(recording, by_label=True)
notebook.show(
    "domains",
    ql.plots.reach_by_label(by_domain, against="prose"),
    "Statistics of every head on code and on recall against the same on prose.",
)

# %% [markdown]
# How many heads differ from what they do on prose? Below are those whose intervals on the two domains do not meet,
# with intervals widened for the number of heads that are looked at (Bonferroni: 1 − 0.05 / heads in place of 0.95),
# and, as layer.head, the head of each kind that moved most. Reach is told by the mean distance here: a horizon is a
# whole number of tokens, and whether two such differ beyond chance its interval cannot tell.

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
            f"{heads_of_kind}**{counts[most]} of {number[kind]} heads** differ in {COLUMNS[most]}, where most do; "
            f"{int((distance < 0).sum())} look less far back on {domain}, {int((distance > 0).sum())} farther"
            if counts[most]
            else f"{heads_of_kind}no head differs in any of these beyond its intervals"
        )
Markdown("\n".join(lines))

# %% [markdown]
# ## From a question to its answer
#
# In a recall text, pairs ` k:7` are listed and asked for later, ` k?7`. At the question mark the value is due. A head
# that looks it up must there put weight on the token of the value that was listed with this key.
#
# * **retrieval**: mass on the value asked for, at the question mark;
# * its **control**: mass on the value of another pair of the same list, mean over those. A head that looks at values,
#   or far back, or at digits, gives as much to those;
# * **picked**: how often the value asked for has more weight than any other pair's; 1 / pairs by chance.
#
# Each pair is asked for once, so that nothing can be copied from an earlier answer.

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
    "Mass on the value asked for beside that on another pair's, and how often it has most weight, by head.",
)

# %% [markdown]
# The best of many heads looks better than it is. So heads are chosen on one half of the texts and measured on the
# other. Chosen are those whose mass on the value asked for exceeds that on another pair's beyond intervals widened as
# above; the table has the ten with most of it.

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
    f"On these texts the model itself gives **{float(right.mean()):.2f}** of the values "
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
        f"**{found} of {number[kind]} {name} heads** point to the value asked for. The one chosen, head {head} of "
        f"layer {layer}, puts {interval(one, 'retrieval')} of its mass there and {interval(one, 'control')} on "
        f"another pair's value; in **{picked}** questions it has most weight of all {pairs} values "
        f"(chance {float(one['chance']):.3g})."
    )
Markdown("\n\n".join(lines))

# %% [markdown]
# Weight is not use. A head may point to the answer, and later layers may still make nothing of it; only taking the
# head out would tell.
#
# ## Maps
#
# The maps of three short texts are kept whole: rows are queries, columns the tokens whose values they read. First the
# two heads chosen above, on a recall text that they were not chosen on. The frames are the weights from each question
# mark to the value that it asks for.

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
    "Maps of one DeltaNet and one attention head on a recall text, with the weights from questions to answers framed.",
)

# %% [markdown]
# On prose: the DeltaNet head that reaches furthest (by its horizon of nine tenths), and the attention head with the
# highest induction score over even weights.

# %%
furthest = {
    DELTANET: best(farthest, DELTANET),
    ATTENTION: best(reach["induction_lift"], ATTENTION),
}
notebook.show(
    "maps_prose",
    ql.plots.attention_map(maps_of(PROSE, furthest.values()), tokens=names[PROSE]),
    "Maps of one DeltaNet and one attention head on prose.",
)

# %% [markdown]
# Choose a text, a layer and a head. The map follows from the recording; the model does not run again. (Choosing needs
# a running kernel. In a saved copy the map stays as it was.)

# %%
explorer = ql.widgets.explore_maps(maps, tokens=dict(enumerate(names)), marks={RECALL: frames})
explorer["text"].value = RECALL
explorer["layer"].value, explorer["head"].value = (int(each) for each in chosen[DELTANET])
explorer

# %% [markdown]
# ## Output gates, and the sink
#
# An attention head's output passes a gate, channel by channel: *o* ∘ sigmoid(gate). Its openness is the mean of that
# sigmoid over channels. Here it is at every token of the prose, a row a head:

# %%
layers_of_attention = [int(layer) for layer in reach["layer"].values if reach["kind"].sel(layer=layer) == ATTENTION]
heads_of_attention = [
    (layer, int(head)) for layer in layers_of_attention for head in maps["softmax_attention"]["head"].values
]
notebook.show(
    "openness",
    ql.plots.openness_by_token(maps_of(PROSE, heads_of_attention), tokens=names[PROSE]),
    "Openness of the output gate of every attention head at each token of a text.",
)

# %% [markdown]
# Over all texts, by class of token. A token is read as it stands in the text: a word's beginning has a space before it.


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

openness = ql.stats.gates(seen.recording(), by_label=True)
by_class = pd.DataFrame(
    [
        {
            "layer": layer,
            "head": head,
            **{str(label): interval(one.sel(label=label), "openness") for label in openness["label"].values},
        }
        for layer, head, one in each_head(openness)
    ]
).set_index(["layer", "head"])
by_class

# %% [markdown]
# Attention has to go somewhere, and many models send what they do not need to the first token: the **sink**. A gate
# that can shut makes that unnecessary (Qiu et al. 2025, [arXiv:2505.06708](https://arxiv.org/abs/2505.06708)). Below,
# for every attention head, what the first token gets:
#
# * of the mass, the raw probability; grey: what even weights would give;
# * of the output with the **gate off**: its share of the norms p(t, s) ‖vₛ‖, summed over rows;
# * of the output with the **gate on**: its share of p(t, s) ‖sigmoid(gateₜ) ∘ vₛ‖.
#
# Off and on are of the same forward pass, of this head's output alone: what the model would do from there on without
# its gates is another question.

# %%
notebook.show(
    "sink", ql.plots.sink(reach), "The first token's share of mass and of output, with the output gate off and on."
)

# %%
sinks = ql.stats.reach(recording, level=level)
sinks = sinks[["first_mass", "first_mass_interval", "first_even", "output_first", "gated_output_first"]]
sinks = sinks.where(sinks["kind"] == ATTENTION, drop=True)
above = int((sinks["first_mass_interval"].sel(bound="low") > sinks["first_even"]).sum())
less = int((sinks["gated_output_first"] < sinks["output_first"]).sum())
middle = {name: f"{float(sinks[name].median()):.3g}" for name in sinks}
classes = openness["openness"].mean(["layer", "head"]).to_series().sort_values()
Markdown(
    f"**{above} of {number[ATTENTION]} attention heads** give the first token more than even weights would, beyond "
    f"widened intervals; the median head gives it {middle['first_mass']} of its mass, even weights would give "
    f"{middle['first_even']}. Of the output it makes {middle['output_first']} with the gate off and "
    f"{middle['gated_output_first']} with the gate on (medians over heads); the gate lowers its share in {less} of "
    f"{number[ATTENTION]} heads. Over all attention heads the gates are most open at tokens of the class "
    f"*{classes.index[-1]}* ({classes.iloc[-1]:.2f}) and least at *{classes.index[0]}* ({classes.iloc[0]:.2f})."
)

# %% [markdown]
# ## What is kept
#
# Three recordings: the statistics over all texts, the rows at the questions, and the whole maps of the short texts.
# `ql.Recording.open(path)` reads them on any machine, without torch. Figures are kept as PNG, and as SVG and PDF for
# print.

# %%
notebook.save(recording=recording, questions=at_questions, maps=maps, heads=heads)
