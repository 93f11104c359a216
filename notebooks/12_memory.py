# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a DeltaNet layer remembers
#
# An attention layer keeps the keys and values of all tokens. A DeltaNet head keeps one matrix of fixed size, its
# state S. Each token, with key k (of norm 1), value v, decay α and write strength β, updates it:
#
# > S ← αS, then S ← S + k (β (v − Sᵀk))ᵀ
#
# (Yang et al. 2024, [arXiv:2412.06464](https://arxiv.org/abs/2412.06464)). Reading with k returns Sᵀk. So a stored
# value is lost in two ways: by decay, and by later writes under similar keys.
#
# This notebook measures for every head what its state stores, for how long, and how full it is; how much later writes
# interfere; and what fewer bits per state cost. [The glossary](../docs/glossary.md) defines every quantity. Brackets
# are 95 % intervals over texts unless noted.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 8  # two or more for intervals, about eight for those of the loss
max_tokens: int = 256  # tokens of each text
every: int = 16  # measure the state after every n-th token
lists: list[int] = [2, 8, 24, 52]  # pairs in the lists that measure capacity: 52 at most
recall_texts: int = 12  # for each length of list
decode_tokens: int = 64  # of each text, decoded one by one with states in low precision
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recordings, the table and the figures; None saves nothing

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import Markdown
from scipy.stats import spearmanr

import qwenlab as ql

interval = ql.notebook.interval
notebook = ql.notebook.start(out, formats=("png", "svg", "pdf"))


def middle(values):
    """The median head's number."""
    return float(values.median())


def best(values):
    """Layer and head where a number [layer, head] is largest."""
    one = values.stack(one=("layer", "head")).dropna("one")
    layer, head = one["one"].values[int(np.argmax(one.values))]
    return int(layer), int(head)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %% [markdown]
# ## Reading
#
# The plain model reads texts of three domains inside `ql.watch`, each cut to the same number of tokens. Recall texts
# list 8 pairs and then query them repeatedly. Probes reduce the state after a sample of tokens and do not store it.

# %%
domains = {domain: ql.tasks.texts(domain, texts_per_domain) for domain in ("code", "prose")}
domains["recall"] = ql.tasks.recall_texts(8, texts_per_domain, questions=max_tokens)
lengths = [
    min(max_tokens, len(ckpt.tokenizer(text).input_ids)) for domain_texts in domains.values() for text in domain_texts
]

probes = ql.probes.DeltaState(every=every), ql.probes.Retention(every=every, pairs=1), ql.probes.DeltaNet(every=every)
with ql.watch(ckpt, *probes) as seen:
    for domain, domain_texts in domains.items():
        with seen.label(domain):
            ql.tasks.feed(ckpt, domain_texts, max_tokens=max_tokens)

recording = seen.recording()
recording

# %% [markdown]
# ## The same state, however it is read
#
# In prefill a kernel reads a whole text at once and returns only the last state; the probe recomputes those in
# between from the kernel's inputs. Here one text is read in three ways, and a few states are stored: in one pass;
# token by token, as in decoding; and half in one pass, the rest token by token. The table has ‖S − S′‖ / ‖S‖ by
# layer, with S from the single pass: the largest over heads and tokens.

# %%
count = min(48, *lengths)
steps = sorted({0, 1, count // 4, count // 2 - 1, count // 2, count - 1})
states = {}
with tempfile.TemporaryDirectory() as folder:
    for way, decode in {"one pass": 0, "token by token": count - 1, "half and half": count - count // 2}.items():
        file = Path(folder) / f"{decode}.nc"
        with ql.watch(ckpt, ql.probes.DeltaState(steps=steps, to=file)):
            ql.tasks.feed(ckpt, domains["prose"][:1], max_tokens=count, decode=decode)
        with xr.open_dataset(file) as held:
            states[way] = held["state"].load()


def norm(values):
    """Of each state."""
    return np.sqrt((values.astype(float) ** 2).sum(["key_channel", "channel"]))


whole = states.pop("one pass")
apart = {way: (norm(other - whole) / norm(whole)).max(["token", "head"]).to_series() for way, other in states.items()}
pd.DataFrame(apart).style.format("{:.1e}")

# %%
Markdown(
    f"After the tokens {', '.join(map(str, steps))} of a text of {count}, the states of the three ways are the same to "
    f"**{max(map(max, apart.values())):.0e}** of their norm. Over all texts read above, the last state of each pass is "
    f"the kernel's own to **{recording['deltastate'].attrs['state_gap']:.0e}**; a difference above 5 % would raise an "
    f"error. The checkpoint computes in {str(ckpt.model.dtype).removeprefix('torch.')}: below float32, rounding in "
    "earlier layers adds to the difference between the three ways."
)

# %% [markdown]
# ## How large a state gets, and when it stops growing
#
# Left: the Frobenius norm of the state along the text. Right: how much each token changes it, ‖Sₜ − Sₜ₋₁‖ / ‖Sₜ₋₁‖, by
# decay and by writing. Lines are the median head of each layer; the grey band is the middle half of all heads. A state
# whose norm has stopped growing is **saturated**: writes balance decay and removal. It still changes.

# %%
growth = ql.stats.state_growth(recording)
notebook.show(
    "growth",
    ql.plots.state_growth(growth),
    "Norm of the state along the text by layer, and the share that each token changes.",
)

# %%
shortest = min(lengths)
last = max(int(edge) for edge in growth["position_bin"].values if edge <= max(1, shortest // 2))
late = growth.sel(position_bin=last)
saturated = growth["saturated_from"]
span = f"positions {last} to {min(2 * last, max(lengths)) - 1}"
Markdown(
    f"Over {span}, the last octave that all texts have, the median head's norm is {middle(late['norm']):.2g}, and "
    f"grew by a factor of {2 ** middle(late['growth']):.2f} since the octave before (√2 if unrelated writes add up "
    f"and nothing decays). **{int((saturated < last).sum())} of {saturated.size} heads** had reached nine tenths "
    f"of their largest norm before that, the median one from token {middle(saturated):.0f} on. A token changes the "
    f"median head's state by **{middle(late['rewrite']):.2f}** of its norm, from {float(late['rewrite'].min()):.2f} in "
    f"the steadiest head to {float(late['rewrite'].max()):.2f} in the one that is rewritten most."
)

# %% [markdown]
# ## How full it is
#
# A state of d × d can store d pairs under orthogonal keys. How many directions does it use?
#
# * **effective rank**: the exponential of the entropy of the singular values, normalised to sum to 1 (Roy & Vetterli
#   2007). It is r if r singular values are equal and the others are 0.
# * **stable rank**: ‖S‖² over the squared largest singular value (Rudelson & Vershynin 2007). Small singular values
#   hardly change it. Near 1, one direction has nearly all of the norm.

# %%
rank = ql.stats.state_rank(recording)
notebook.show("rank", ql.plots.state_rank(rank), "Effective and stable rank of the state along the text, by layer.")

# %% [markdown]
# Every head in the last octave, with intervals over texts. Heads have the same order in every panel:

# %%
by_head = rank.assign(growth.data_vars).sel(position_bin=last)
notebook.show(
    "by_head", ql.plots.state_by_head(by_head), "Ranks, norm and rewriting of every head's state late in the text."
)

# %%
full = int(rank["full_rank"])
fullest = best(by_head["effective_rank"])
Markdown(
    f"Of {full} directions the median head's state spreads over **{middle(by_head['effective_rank']):.1f}** (effective "
    f"rank) or {middle(by_head['stable_rank']):.1f} (stable rank): one direction has "
    f"{100 / middle(by_head['stable_rank']):.0f} % of its squared norm. The fullest, head {fullest[1]} of layer "
    f"{fullest[0]}, has {interval(by_head.sel(layer=fullest[0], head=fullest[1]), 'effective_rank')}; "
    f"{int((by_head['effective_rank'] > full / 2).sum())} of {saturated.size} heads use more than half of what there "
    "is."
)

# %% [markdown]
# ## What is left of a stored pair
#
# Each token stores a pair (k, v). Later the state is asked with k, and what it gives back along v is held against what
# it gave back just before the pair was stored, and right after:
#
# * **survival**: what is left of what storing the pair added, 1 at first, 0 where the state knows no more than before;
# * **decay alone**: what would be left had no later token written. The difference to survival was **overwritten**;
#   where it is above, the text wrote the same value again.
#
# First on ordinary text (code and prose together), one panel per layer:

# %%
ordinary = recording["retention"].sel(label=["code", "prose"])
notebook.show(
    "retention",
    ql.plots.retention(ql.stats.retention(ordinary)),
    "What is left of a stored value by tokens since, by layer and head, and after decay alone.",
)

# %% [markdown]
# Then by domain: the median over heads and the middle half. Right: the **retrieval error** ‖Sᵀk − v‖ / ‖v‖ of the value
# read back. Other pairs under similar keys contribute to it, so it is not 0 right after storing, and it can exceed the
# error of an empty state (1, dashed).

# %%
by_domain = ql.stats.retention(recording, by_label=True)
notebook.show(
    "retention_by_domain",
    ql.plots.retention_by_label(by_domain),
    "Survival and retrieval error of stored pairs by tokens since, by domain.",
)

# %%
kept = ql.stats.retention(ordinary)["survival"].median(["layer", "head"]).dropna("distance_bin")
error = by_domain["error"].median(["layer", "head"]).dropna("distance_bin")
near, far = int(error["distance_bin"][0]), int(error["distance_bin"][-1])
Markdown(
    "On code and prose the median head keeps "
    + ", ".join(
        f"**{float(kept.sel(distance_bin=edge)):.2f}** {later} later"
        for edge, later in {1: "1 token", 8: "8 to 15 tokens", 64: "64 to 127 tokens"}.items()
        if edge in kept["distance_bin"]
    )
    + ". Its retrieval error goes from "
    + "; ".join(
        f"{float(error.sel(label=label, distance_bin=near)):.2f} to "
        f"{float(error.sel(label=label, distance_bin=far)):.2f} on {label}"
        for label in error["label"].values
    )
    + f" (right after storing, and {far} or more tokens later)."
)

# %% [markdown]
# ## Decay, or interference?
#
# For each head, over all pairs read back (about as many in every octave of distance): what decay alone would leave
# (rings) and what is left (dots), by half-life. The line between them is what later writes removed.
#
# Do writes remove more where keys are similar? **Key collision** is the expected squared cosine of the keys of two
# tokens; it bounds what a state can store (Schlag et al. 2021, [arXiv:2102.11174](https://arxiv.org/abs/2102.11174)).
# Keys spread evenly over all channels have the dotted value.

# %%
level = 1 - 0.05 / saturated.size
left = ql.stats.retention(recording, by=None)
heads = left.assign(ql.stats.half_life(recording).data_vars).assign(ql.stats.key_collision(recording).data_vars)
notebook.show(
    "interference",
    ql.plots.interference(heads),
    "What decay and later writes leave of stored values, by half-life and by key collision.",
)

# %%
sure = ql.stats.retention(recording, by=None, level=level)["overwritten_interval"]
taken, added = int((sure.sel(bound="low") > 0).sum()), int((sure.sel(bound="high") < 0).sum())
own_keys = np.arange(heads.sizes["head"]) // (heads.sizes["head"] // heads.sizes["key_head"])
collision = heads["key_collision"].isel(key_head=own_keys).values.ravel()


def along(x, name):
    """Rank correlation over heads."""
    return f"{spearmanr(x, heads[name].values.ravel()).statistic:.2f}"


life = heads["half_life_mean_log"].values.ravel()
most = best(heads["overwritten"])
Markdown(
    f"Later writes removed part of what decay would have left in **{taken} of {saturated.size} heads**, and added to "
    f"it in {added} (by intervals widened for the number of heads: level 1 − 0.05 / heads). They removed most in "
    f"head {most[1]} of layer {most[0]}: {interval(heads.sel(layer=most[0], head=most[1]), 'overwritten')} of a stored "
    "value. Over heads, the rank correlation of the half-life with what is overwritten is "
    f"**{along(life, 'overwritten')}**, with the retrieval error {along(life, 'error')}; that of the key collision "
    f"with what is overwritten is **{along(collision, 'overwritten')}**, with the retrieval error "
    f"{along(collision, 'error')}. The median key collision is {np.median(collision):.2g}; evenly spread keys would "
    f"have {float(heads['isotropic_floor']):.2g}. Heads of one model are not independent samples: these correlations "
    "describe this model only."
)

# %% [markdown]
# ## Capacity: lists of pairs
#
# On ordinary text there is no right answer for what a head should remember. So the model reads lists ` k:7 a:3 …` of
# 2 and more pairs. At the end of the list, before any question, the probe reads back the pair that the token of each
# value stored (its key has passed a short convolution, so it includes the letter before it). Right: the same lists
# with questions, and the share of values that the whole model answers, attention layers included.

# %%
listed = {
    str(number): [text.partition("\n")[0] + "\n" for text in ql.tasks.recall_texts(number, recall_texts, seed=1)]
    for number in lists
}
asked = ql.tasks.recall_texts(max(lists), recall_texts, seed=1)
ids = [ckpt.tokenizer(text).input_ids for text in asked]
questions = ql.tasks.recall_questions(ckpt, asked)
values = {ids[one["text"].item()][at] for _, one in questions.groupby("question") for at in one["value"].values.flat}
ends = {ckpt.tokenizer(text).input_ids[-1] for texts in listed.values() for text in texts}

with ql.watch(ckpt, ql.probes.Retention(every=1, pairs=1, store_ids=values, query_ids=ends)) as seen:
    for number, texts in listed.items():
        with seen.label(number):
            ql.tasks.feed(ckpt, texts, max_tokens=None)
at_the_end = seen.recording()

tasks = [ql.tasks.recall_task(ckpt, ql.tasks.recall_texts(number, recall_texts, seed=1)) for number in lists]
right = [ql.tasks.measure(ckpt, [task], batch_size=32)["accuracy"] for task in tasks]
accuracy = ql.stats.mean_over_texts(xr.concat(right, pd.Index(lists, name="pairs")))
capacity = ql.stats.retention(at_the_end, by=None, by_label=True)
notebook.show(
    "capacity",
    ql.plots.capacity(capacity, accuracy),
    "Retrieval error at the end of a list and correct answers, by number of pairs.",
)

# %% [markdown]
# Is it the number of pairs, or how long ago they were stored? The same by what was written since: the sum of the write
# strengths β after the pair. If lists of every length lie on one line, only the later writes matter.

# %%
since = ql.stats.retention(at_the_end, by="writes", by_label=True)
notebook.show(
    "capacity_by_writes",
    ql.plots.retention_by_label(since),
    "Survival and retrieval error of listed pairs by what was written since.",
)

# %%
few, many = (str(number) for number in (min(lists), max(lists)))
error = capacity["error"]
keeper = best(-error.sel(label=many, drop=True))
one = capacity.sel(layer=keeper[0], head=keeper[1])
Markdown(
    f"At the end of a list the median head retains **{middle(capacity['survival'].sel(label=few)):.2f}** of what "
    f"storing a pair added after {few} pairs, and **{middle(capacity['survival'].sel(label=many)):.2f}** after {many}; "
    f"its retrieval error is {middle(error.sel(label=few)):.2f} and {middle(error.sel(label=many)):.2f}. The head that "
    f"errs least after {many}, head {keeper[1]} of layer {keeper[0]}, has "
    f"{interval(one.sel(label=many), 'error')} there (the best of {saturated.size} looked at), and "
    f"{interval(one.sel(label=few), 'error')} after {few}. The model answers "
    f"**{float(accuracy['mean'].sel(pairs=int(few))):.2f}** of the values of {few} pairs and "
    f"**{interval(accuracy.sel(pairs=int(many)), 'mean')}** of {many} (chance {float(accuracy['chance']):.1f}). "
    "A state that stores a pair does not prove that the model reads it there: attention layers have the pairs too."
)

# %% [markdown]
# ## States in fewer bits
#
# Every sequence of a batch needs its own states, however short it is, so storing them in fewer bits saves memory.
# Here the probe runs the delta rule again from the kernel's inputs and rounds the state after every token: to
# bfloat16, or to 8 bits with one scale per head. The error ‖S′ − S‖ / ‖S‖ carries over to later states; whether it
# grows depends on how much a head forgets. On prose: lines are the median head, bands the middle half, thin lines the
# worst head at each length.

# %%
with ql.watch(ckpt, ql.probes.StatePrecision(every=max(1, every // 4))) as seen:
    ql.tasks.feed(ckpt, domains["prose"], batch_size=texts_per_domain, max_tokens=max_tokens)
in_fewer_bits = seen.recording()

precision = ql.stats.state_precision(in_fewer_bits)
notebook.show(
    "precision", ql.plots.state_precision(precision), "Error of the state along the text in bfloat16, float8 and int8."
)

# %%
late = precision.sel(position_bin=last)
notebook.show(
    "precision_by_head",
    ql.plots.state_precision_by_head(late),
    "Error of every head's state late in the text, by format.",
)

# %%
sure = ql.stats.state_precision(in_fewer_bits, level=level)["growth_interval"].sel(position_bin=last, bound="low") > 0
worst = {format: best(late["error"].sel(format=format, drop=True)) for format in late["format"].values}
strays = pd.DataFrame(
    {
        format: {
            f"error from token {last} on, median head": f"{middle(here['error']):.2g}",
            "worst head (layer.head)": f"{layer}.{head}: {interval(here.sel(layer=layer, head=head), 'error')}",
            "growth by an octave, median head (1)": f"{middle(here['growth']):.2f}",
            "heads whose error still grows": int(sure.sel(format=format).sum()),
        }
        for format, (layer, head) in worst.items()
        for here in [late.sel(format=format)]
    }
)
strays

# %% [markdown]
# An error is **still growing** if the interval of its growth (log₂ of the mean error over that of the octave before),
# widened for the number of heads, lies above 0. A growth of ½ means that independent errors add up and none decays. An
# error stops growing once the head forgets it as fast as rounding adds to it.
#
# ### Effect on the loss
#
# Now the model itself decodes with rounded states: it reads the texts token by token, and its cached states are rounded
# after every token (`ql.interventions.StateDtype`; the layers compute as before). Losses are paired by text with those
# of the plain model, read the same way, so the difficulty of a text cancels. One row per domain; bars are bootstrap
# intervals over texts, widened for the number of comparisons.

# %%
read_one_by_one = [text for domain_texts in domains.values() for text in domain_texts]
task = ql.tasks.text_task(ckpt, read_one_by_one, max_tokens=decode_tokens)
LOSS = dict(block=1, batch_size=len(read_one_by_one))


def losses(**how):
    """Loss [domain, text] of the same texts."""
    found = ql.tasks.measure(ckpt, [task], **how)["loss"]
    by_domain = found.values.reshape(len(domains), texts_per_domain)
    return xr.DataArray(by_domain, {"domain": list(domains)}, ("domain", "text"), attrs=found.attrs)


plain, in_one_pass = losses(**LOSS), losses(**LOSS | {"block": None})
rounded = {}
for format in ql.probes.StatePrecision().formats:
    with ql.intervene(ckpt.model, ql.interventions.StateDtype(format)):
        rounded[format] = losses(**LOSS)
low = xr.concat(list(rounded.values()), pd.Index(list(rounded), name="format")).transpose("domain", "format", "text")

wide = 1 - 0.05 / (low.sizes["domain"] * low.sizes["format"])
change = ql.stats.mean_over_texts(low, less=plain, level=wide)
notebook.show(
    "loss",
    ql.plots.mean_over_texts(change),
    "Change of the loss with states in each format, by domain, with intervals over texts.",
)

# %%
beside = ql.stats.mean_over_texts(plain)
pd.DataFrame(
    {
        domain: {
            "plain model (nat)": interval(beside.sel(domain=domain), "mean"),
            **{
                f"{format}, change (nat)": interval(change.sel(domain=domain, format=format), "mean")
                for format in low["format"].values
            },
        }
        for domain in domains
    }
)

# %%
floor = float(abs(in_one_pass - plain).max())
ends = change["mean_interval"]
worse, better = ends.sel(bound="low") > 0, ends.sel(bound="high") < 0
lines = []
for format in low["format"].values:
    here = change.sel(format=format)
    domain = str(here["domain"].values[int(np.argmax(np.abs(here["mean"].values)))])
    hurt, helped = int(worse.sel(format=format).sum()), int(better.sel(format=format).sum())
    most = here.sel(domain=domain)
    lines.append(
        f"* **{format}** changes the loss most on {domain}, by {interval(most, 'mean')} nat, "
        f"{100 * abs(float(most['mean'] / beside['mean'].sel(domain=domain))):.2g} % of it; it is significantly larger "
        f"on {hurt} of {len(domains)} domains, significantly smaller on {helped}"
    )
Markdown(
    "\n".join(lines)
    + f"\n\nRead in one pass rather than token by token, no text's loss changes by more than {floor:.0e} nat: which is "
    "the rounding of the arithmetic itself. "
    + ("" if texts_per_domain > 7 else f"**Of {texts_per_domain} texts a domain no interval can be trusted.** ")
    + f"This holds for the first {decode_tokens} tokens of a text. Errors that still grow there would do more harm "
    "on longer texts; this notebook does not measure how much."
)

# %% [markdown]
# ## Saved files
#
# Three recordings (all texts, the ends of lists, states in fewer bits) and a table of every head.
# `ql.Recording.open(path)` reads a recording on any machine, without torch. Figures are saved as PNG, and as SVG and
# PDF for print.

# %%
NUMBERS = {
    "norm": "norm (1)",
    "largest": "largest singular value (1)",
    "effective_rank": "effective rank (directions)",
    "stable_rank": "stable rank (directions)",
    "rewrite": "rewritten by a token (1)",
    "half_life_mean_log": "half-life (tokens)",
    "survival": "survival (1)",
    "decay_alone": "decay alone (1)",
    "overwritten": "overwritten (1)",
    "error": "retrieval error (1)",
}
every_head = by_head.assign(heads.data_vars)
table = pd.DataFrame(
    [
        {"layer": int(layer), "head": int(head)}
        | {title: interval(every_head.sel(layer=layer, head=head), name) for name, title in NUMBERS.items()}
        | {"saturated from (tokens)": int(saturated.sel(layer=layer, head=head))}
        for layer in every_head["layer"].values
        for head in every_head["head"].values
    ]
).set_index(["layer", "head"])
table

# %%
notebook.save(recording=recording, lists=at_the_end, precision=in_fewer_bits, heads=table)
