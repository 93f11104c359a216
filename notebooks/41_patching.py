# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where is the answer? Activation patching, layer by position
#
# A text lists pairs of a letter and a digit, ` a:3 k:7`, and queries one of them, ` k?`. The right digit appears at one
# token and must be predicted at another, so some layers have to move it there. Where is it after each layer, and which
# layers move it?
#
# *Activation patching* tests this directly (Vig et al. 2020, [arXiv:2004.12265](https://arxiv.org/abs/2004.12265); Meng
# et al. 2022, [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)). Two texts differ in one token and have different
# answers: the *source* and the *target*. The model reads the target while one activation, of one
# layer at one position, is replaced by its value from the source. If the model now gives the source's answer, that
# activation contains it.
#
# Three quantities are used below, all for the log-probability of the **source's answer** after the last token:
#
# * `effect` [nat]: with one activation patched, minus without; mean over pairs of texts.
# * `total` [nat]: after the source, minus after the target: the effect of patching everything.
# * `restored` [1]: `effect / total`. 0 is the unpatched target, 1 the source. It is not a probability, and can be
#   below 0 or above 1.
#
# Brackets are 95 % intervals over pairs of texts. A patch is *significant* if its effect differs from 0 at the 5 %
# level, corrected for all layers and positions. [The glossary](../docs/glossary.md) defines the other terms.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 12  # pairs of texts of each comparison; with fewer than about eight nothing can be significant
max_tokens: int = 20  # of each text, with the answer: prose fills the space between pairs and question
pairs: int = 4  # pairs of a letter and a digit in each text; 2 to 26
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None saves nothing

# %%
import random

import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import Markdown

import qwenlab as ql

notebook = ql.notebook.start(out)


def restored(data):
    """The share restored with its interval, as text."""
    return ql.notebook.interval(data, "restored", "z.2f")


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
DELTANET, ATTENTION = "linear_attention", "full_attention"
ckpt

# %% [markdown]
# ## Two comparisons
#
# Every text queries its second pair. Each source gets two targets, which differ from it in one token:
#
# * **another value**: the digit of the queried pair. Only this token determines the answer.
# * **another key**: the letter in the question, so that it queries the third pair, which has another digit. Both texts
#   list the same pairs; only the query changes.
#
# All texts have the same length in tokens and the same roles at the same positions, so positions correspond.

# %%
task = ql.tasks.mqar(ckpt, pairs=pairs, count=texts_per_domain, questions=1, length=max_tokens)
strangers = ql.tasks.mqar(ckpt, pairs=pairs, count=texts_per_domain, questions=1, length=max_tokens, seed=1)
digits, rng = task.answers, random.Random(0)
ASKED = 1  # the pair, counted from 0
OTHER = 2 % pairs
KEYS, VALUES = range(0, 3 * pairs, 3), range(2, 3 * pairs, 3)  # positions in the list
KEY, MARK = max_tokens - 3, max_tokens - 2  # of the question
assert ckpt.tokenizer.decode([task.tokens[0][1]]) == ":", "keys of one letter are needed: ask for fewer pairs"


def put(tokens, **changes):
    """The tokens with others at some positions."""
    return [changes.get(f"at_{position}", token) for position, token in enumerate(tokens)]


def asking(tokens, pair):
    """The text up to the question mark, with the question for this pair."""
    return put(tokens[: MARK + 1], **{f"at_{KEY}": tokens[KEYS[pair]]})


def another(*not_these):
    return rng.choice([digit for digit in digits if digit not in not_these])


source, other_value, other_key, stranger, answers = [], [], [], [], []
for tokens, strange in zip(task.tokens, strangers.tokens, strict=True):
    answer = tokens[VALUES[ASKED]]
    tokens = put(tokens, **{f"at_{VALUES[OTHER]}": another(answer)})
    source.append(asking(tokens, ASKED))
    other_value.append(put(source[-1], **{f"at_{VALUES[ASKED]}": another(answer)}))
    other_key.append(asking(tokens, OTHER))
    stranger.append(asking(put(strange, **{f"at_{VALUES[ASKED]}": another(answer)}), ASKED))
    answers.append(answer)

for name, texts in {"source": source, "another value": other_value, "another key": other_key}.items():
    print(f"{name:>13}: {ckpt.tokenizer.decode(texts[0])!r}")
print(f"       answer: {ckpt.tokenizer.decode([answers[0]])!r}")

# %% [markdown]
# A model that cannot do the task has no answer to find. So first: how often is the source's answer the model's first
# choice? It should be nearly always after the source, and rarely after the targets.


# %%
@torch.no_grad()
def logprobs(texts, *edits):
    """Log-probabilities [pair, vocabulary] after each text, read under edits."""
    ids = torch.tensor(texts, device=ckpt.model.device)
    with ql.intervene(ckpt.model, *edits) if edits else torch.no_grad():
        logits = ckpt.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.double().log_softmax(dim=-1).cpu()


def of_answers(found):
    """Of the source's answer [pair]."""
    return found[range(len(answers)), answers].numpy()


read = {
    name: logprobs(texts)
    for name, texts in {"source": source, "another value": other_value, "another key": other_key}.items()
}
pd.DataFrame(
    {
        "source's answer is the first choice (share of pairs)": {
            name: f"{float((found.argmax(dim=-1) == torch.tensor(answers)).double().mean()):.2f}"
            for name, found in read.items()
        },
        "its log-probability (nat, mean)": {name: f"{of_answers(found).mean():z.2f}" for name, found in read.items()},
    }
)

# %% [markdown]
# ## Another value
#
# One activation is patched at a time: the residual stream after each layer (*residual*), or the output of its mixer or
# MLP. Positions are the changed token, its two neighbours, and the last two tokens: key and question mark. Bold marks
# tokens in which source and target differ; "…" is a token that varies between pairs of texts.


# %%
def patched(texts, target, positions, parts=("residual", "mixer", "mlp")):
    """`ql.ablations.patching` of several parts, as one Dataset."""
    found = [
        ql.ablations.patching(
            ckpt, texts, target, answers, sites=f"layers.*.{part}", positions=positions, progress=False
        )
        for part in parts
    ]
    whole = xr.concat(found, "site", data_vars="minimal", coords="minimal", compat="override", join="exact")
    return whole.assign_attrs(found[0].attrs)


TOLD = VALUES[ASKED]  # the position of the queried value
value_data = patched(source, other_value, [TOLD - 1, TOLD, TOLD + 1, KEY, MARK])
value = ql.stats.patching(value_data)
notebook.show(
    "another_value",
    ql.plots.patching(value),
    "Share of the answer restored by each patch, layers by positions: another value.",
)

# %% [markdown]
# Read the top panel first. Where patching at the value's token restores the answer, the answer has not moved on; where
# patching at the question mark restores it, it has arrived. The residual stream is the sum of all layers below, so its
# panel shows *where the answer is*. The mixer and MLP panels show *which layer writes it*: only that layer's output is
# patched, and the rest of the stream is the target's.


# %%
def stream(found, position):
    """What the stream restores at a position, by layer."""
    here = found.sel(position=position)
    return here.isel(site=np.flatnonzero(here["part"].values == "residual"))


kinds = stream(value, MARK).set_index(site="layer")["kind"].to_series()
names = {int(layer): ql.plots.LABELS[str(kind)] for layer, kind in kinds.items()}
by_layer = pd.DataFrame(
    {
        "kind": names.values(),
        "residual at the value (restored)": [restored(stream(value, TOLD).isel(site=row)) for row in range(len(names))],
        "residual at the question mark (restored)": [
            restored(stream(value, MARK).isel(site=row)) for row in range(len(names))
        ],
    },
    index=pd.Index(names, name="layer"),
)
by_layer


# %%
def first(found, position, above=True):
    """The first layer after which half of the answer is there, or (not above) no longer is; None for none."""
    there = stream(found, position)["restored"].values >= 0.5
    rows = np.flatnonzero(there if above else ~there)
    return int(stream(found, position)["layer"].values[rows[0]]) if rows.size else None


def after(layer):
    return "after no layer" if layer is None else f"after layer {layer} ({names[layer]})"


def largest(found, part, position):
    """Which layer's part restores most at a position."""
    here = found.sel(position=position)
    here = here.isel(site=np.flatnonzero(here["part"].values == part))
    one = here.isel(site=int(here["restored"].values.argmax()))
    verdict = "significant" if bool(one["significant"]) else "not significant"
    kind = ql.plots.LABELS[str(one["kind"].values)]
    return f"that of layer {int(one['layer'])} ({kind}), {restored(one)}, which is {verdict}"


low, high = value["total_interval"].values
Markdown(
    f"The whole source makes its answer {float(value['total']):.2f} [{low:.2f}, {high:.2f}] nat likelier. The stream "
    f"at the value's token falls below half of that first **{after(first(value, TOLD, above=False))}**; the stream at "
    f"the question mark holds half of it first **{after(first(value, MARK))}**. Of what single mixers write at the "
    f"question mark, most is restored by {largest(value, 'mixer', MARK)}; of single MLPs, by "
    f"{largest(value, 'mlp', MARK)}."
)

# %% [markdown]
# Half is a convention, and the two layers can differ. While the answer is in both places, either alone may restore it;
# while it moves in parts, neither does.
#
# ## Another key
#
# Here both texts list the same pairs and differ in the query. The patched positions are the new line before the
# question, its key, and the question mark. What moves now is the query, not the digit. Once it has become an answer,
# the stream at the key no longer matters.

# %%
key_data = patched(source, other_key, [KEY - 1, KEY, MARK])
key = ql.stats.patching(key_data)
notebook.show(
    "another_key",
    ql.plots.patching(key),
    "Share of the answer restored by each patch, layers by positions: another key.",
)

# %%
low, high = key["total_interval"].values
Markdown(
    f"The whole source makes its answer {float(key['total']):.2f} [{low:.2f}, {high:.2f}] nat likelier. The stream "
    f"at the key falls below half of that first **{after(first(key, KEY, above=False))}**; the stream at the question "
    f"mark holds half of it first **{after(first(key, MARK))}**. Of single mixers at the question mark, most is "
    f"restored by {largest(key, 'mixer', MARK)}."
)

# %% [markdown]
# ## All mixers of a kind together
#
# A single mixer may restore little because several share the work. So here all mixers of a kind are patched together,
# at one position: their outputs come from the source, everything else from the target. Only mixers move information
# between tokens, so all mixers together must restore everything at the question mark: their row there is 1 up to
# rounding, or the patching is wrong. The two kinds do not have to add up to 1, because one kind may read what the
# other wrote.

# %%
KINDS = {"DeltaNet mixers": DELTANET, "attention mixers": ATTENTION, "all mixers": None}
with ql.interventions.cache_activations(ckpt.model, "layers.*.mixer") as taken:
    logprobs(source)


def together(found, target):
    """Statistics of all mixers of a kind patched at once, at the positions of `found`."""
    rows = [
        [
            of_answers(
                logprobs(target, ql.interventions.Patch("layers.*.mixer", kind=kind, cache=taken, positions=[position]))
            )
            for position in found["position"].values.tolist()
        ]
        for kind in KINDS.values()
    ]
    some = found.isel(site=[0] * len(KINDS)).assign_coords(site=list(KINDS))
    return ql.stats.patching(some.assign(logprob=(("site", "position", "pair"), np.array(rows))))


ROLES = {TOLD: "value", KEY: "key", MARK: "question mark"}
comparisons = {
    "another value": together(value_data.sel(position=[TOLD, KEY, MARK]), other_value),
    "another key": together(key_data.sel(position=[KEY, MARK]), other_key),
}
pd.DataFrame(
    {
        (comparison, f"at the {ROLES[position]} (restored)"): {
            mixers: restored(found.sel(site=mixers, position=position)) for mixers in KINDS
        }
        for comparison, found in comparisons.items()
        for position in found["position"].values.tolist()
    }
)

# %%
whole = max(abs(float(found["restored"].sel(site="all mixers", position=MARK)) - 1) for found in comparisons.values())
lines = [f"All mixers together restore everything at the question mark, to {whole:.1e}."]
for comparison, found in comparisons.items():
    here = found.sel(position=MARK)
    delta, attention = (here.sel(site=name) for name in ("DeltaNet mixers", "attention mixers"))
    lines.append(
        f"* {comparison}: at the question mark all DeltaNet mixers together restore **{restored(delta)}**, "
        f"all attention mixers **{restored(attention)}**."
    )
Markdown("\n".join(lines))

# %% [markdown]
# ## Controls
#
# Two patches that must have no effect, and one that shows the effect of any disturbance.
#
# 1. **A text into itself.** Each activation is replaced by its own value. Every logit must stay the same, bit for bit.
# 2. **Before the change.** Up to the first token in which the texts differ, both are the same. Patching there must
#    have no effect beyond rounding. The token before the changed one is a position above for this reason.
# 3. **Another text.** The stream comes from a text of the same form with other pairs and another query. It disturbs the
#    model as much, but has no information about the answer. Its effect is not zero: a model that was confident of the
#    target's answer becomes less confident, and all other digits more likely, the source's included. So it is the
#    baseline at its position: only larger shares mean something.

# %%
with ql.interventions.cache_activations(ckpt.model, "layers.*.*") as own:
    before = logprobs(other_value)
words = dict.fromkeys(site.rpartition(".")[2] for site in own.sites)
same = {
    word: torch.equal(logprobs(other_value, ql.interventions.Patch(f"layers.*.{word}", cache=own)), before)
    for word in words
}
changes = [
    np.abs(value_data["logprob"] - value_data["target_logprob"]).sel(position=TOLD - 1).values.max(),
    np.abs(key_data["logprob"] - key_data["target_logprob"]).sel(position=KEY - 1).values.max(),
]
Markdown(
    f"1. Patched with their own values in all layers and at all positions, **{sum(same.values())} of {len(same)}** "
    f"kinds of activation ({', '.join(same)}) leave every logit as it was, bit for bit.\n"
    f"2. Before the change the largest difference of any log-probability is **{max(changes):.1e} nat**."
)

# %%
strange_data = patched(stranger, other_value, [TOLD, KEY, MARK], parts=("residual",))
strange_data = strange_data.assign(source_logprob=value_data["source_logprob"])  # the same total, for the same scale
strange = ql.stats.patching(strange_data)
notebook.show(
    "another_text",
    ql.plots.patching(strange),
    "Share of the answer restored by the stream of an unrelated text, layers by positions.",
)


# %%
def most(found, position):
    """The layer after which the stream restores most at a position, and what it restores."""
    here = stream(found, position)
    return here.isel(site=int(here["restored"].values.argmax()))


own_most, other_most = ({position: most(found, position) for position in ROLES} for found in (value, strange))
key_most = most(key, KEY)
Markdown(
    "3. The most that the stream of another text restores, over all layers: at the value "
    f"**{restored(other_most[TOLD])}** (the source's own: {restored(own_most[TOLD])}), at the question mark "
    f"**{restored(other_most[MARK])}** (the source's own: {restored(own_most[MARK])}), at the key "
    f"**{restored(other_most[KEY])}**. "
    "Most other keys query a pair that is not in the text, and leave the model uncertain; the right key restores "
    f"{restored(key_most)} where the texts differ in the question."
)

# %% [markdown]
# Limits: an activation that restores the answer is *sufficient* for it, with everything else from the target. Whether
# it is *necessary* is a question for ablations, in [40_ablations](40_ablations.py): an activation that restores
# nothing may still be necessary. If several activations carry the answer, each alone may look unimportant. And
# nothing here covers other tasks, lengths or distances.
#
# ## Saved files
#
# The recording has the log-probabilities of every pair of texts. `ql.stats.patching(recording)` reads the first
# comparison, and `ql.stats.patching(recording["another_key"])` the second, on any machine, without torch.

# %%
kept = {"patching": value_data, "another_key": key_data, "another_text": strange_data}
notebook.save(recording=ql.Recording(kept, value_data.attrs))
