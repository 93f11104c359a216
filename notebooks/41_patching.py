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
# A text tells pairs of a letter and a digit, ` a:3 k:7`, and asks for one of them, ` k?`. The right digit stands at one
# token and is due after another, so something has to carry it there. Where is it after each layer, and which layers
# carry it?
#
# *Activation patching* asks that directly (Vig et al. 2020, [arXiv:2004.12265](https://arxiv.org/abs/2004.12265); Meng
# et al. 2022, [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)). Two texts differ in one token and have different
# answers: the *source* and the *target*. The target is read while one value, of one layer at one position, is
# replaced by what it was when the source was read. If the model now gives the source's answer, that value holds it.
#
# Three numbers are used below, all of the log-probability of the **source's answer** after the last token:
#
# * `effect` [nat]: with one value patched, less without; mean over pairs of texts.
# * `total` [nat]: after the source, less after the target: what putting in the whole source would do.
# * `restored` [1]: `effect / total`. 0 is the target as it is, 1 the source. It is not a probability, and not bound to
#   lie between.
#
# Numbers in brackets are 95 % intervals over pairs of texts; a value *stands* if its effect differs from 0 at 5 % after
# correction for all layers and positions at once. Other words are in [the glossary](../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 12  # pairs of texts of each comparison; below about eight none can survive its correction
max_tokens: int = 20  # of each text, the answer included: prose fills what pairs and question leave
pairs: int = 4  # of a letter and a digit, told in each text; 2 to 26
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None keeps nothing

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
# Every text asks for its second pair. Two targets are made of each source, and each differs from it in one token:
#
# * **another value**: the digit of the pair that is asked for. Nothing but this token tells what the answer is.
# * **another key**: the letter in the question, so that the third pair is asked for, whose digit is another. Both texts
#   tell the same pairs; what changes is which of them is due.
#
# All texts have one length in tokens, and the same roles at the same positions: only so do positions correspond.

# %%
task = ql.tasks.mqar(ckpt, pairs=pairs, count=texts_per_domain, questions=1, length=max_tokens)
strangers = ql.tasks.mqar(ckpt, pairs=pairs, count=texts_per_domain, questions=1, length=max_tokens, seed=1)
digits, rng = task.answers, random.Random(0)
ASKED = 1  # the pair, counted from 0
OTHER = 2 % pairs
KEYS, VALUES = range(0, 3 * pairs, 3), range(2, 3 * pairs, 3)  # positions of what is told
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
# A model that cannot do the task has no answer to be found. So first: how often is the source's answer its first
# choice, after each text? It should be always after the source, and hardly ever after the targets.


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
# Patched are, one at a time, the stream after each layer (*residual*), and what each layer's mixer and MLP add to it.
# Positions are the token before the changed one, the changed one, the one after it, and the last two: key and question
# mark. Bold are those in which the texts differ; "…" is a token that differs from pair to pair of texts.


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


TOLD = VALUES[ASKED]  # the position of the value that is asked for
value_data = patched(source, other_value, [TOLD - 1, TOLD, TOLD + 1, KEY, MARK])
value = ql.stats.patching(value_data)
notebook.show(
    "another_value",
    ql.plots.patching(value),
    "Share of the answer restored by each patched value, layers by positions, where the texts differ in a value.",
)

# %% [markdown]
# Read the top panel first. Where the stream is restored at the value's own token the answer has not left it, or not
# for good; where it is restored at the question mark it has arrived. A residual holds all that the layers below have
# put there, so its panel says *where the answer is*. Mixer and MLP panels say *who puts it there*: only what this
# layer adds is patched, and the rest of the stream stays the target's.


# %%
def stream(found, position):
    """What the stream restores at a position, by layer."""
    here = found.sel(position=position)
    return here.isel(site=np.flatnonzero(here["part"].values == "residual"))


kinds = stream(value, MARK).set_index(site="layer")["kind"].to_series()
names = {int(layer): ql.plots.LABELS[str(kind)] for layer, kind in kinds.items()}
handover = pd.DataFrame(
    {
        "kind": names.values(),
        "residual at the value (restored)": [restored(stream(value, TOLD).isel(site=row)) for row in range(len(names))],
        "residual at the question mark (restored)": [
            restored(stream(value, MARK).isel(site=row)) for row in range(len(names))
        ],
    },
    index=pd.Index(names, name="layer"),
)
handover


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
    stands = "stands" if bool(one["stands"]) else "does not stand"
    kind = ql.plots.LABELS[str(one["kind"].values)]
    return f"that of layer {int(one['layer'])} ({kind}), {restored(one)}, which {stands}"


low, high = value["total_interval"].values
Markdown(
    f"The whole source makes its answer {float(value['total']):.2f} [{low:.2f}, {high:.2f}] nat likelier. The stream "
    f"at the value's token falls below half of that first **{after(first(value, TOLD, above=False))}**; the stream at "
    f"the question mark holds half of it first **{after(first(value, MARK))}**. Of what single mixers write at the "
    f"question mark, most is restored by {largest(value, 'mixer', MARK)}; of single MLPs, by "
    f"{largest(value, 'mlp', MARK)}."
)

# %% [markdown]
# Half is a convention, and the two need not fall in one layer: while the answer is in both places, either alone may
# restore it, and while it is on the way in pieces, neither does.
#
# ## Another key
#
# Here both texts tell the same, and differ in what is asked. Patched are the new line before the question, its key,
# and the question mark. What is handed on now is not the digit but the question: where it is turned into an answer,
# the stream at the key stops to matter.

# %%
key_data = patched(source, other_key, [KEY - 1, KEY, MARK])
key = ql.stats.patching(key_data)
notebook.show(
    "another_key",
    ql.plots.patching(key),
    "Share of the answer restored by each patched value, layers by positions, where the texts differ in the question.",
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
# ## One kind of layer beside the other
#
# A single mixer may restore little because several share the work. So all mixers of one kind are patched together, at
# one position: their outputs are what they were after the source, all else follows from the target. Nothing but a
# mixer brings anything from one token to another, so all mixers together have to restore everything at the question
# mark: their row there is 1 up to rounding, or something is wrong with the patching. Kinds need not add up to it, since
# what one kind reads may be what the other wrote.

# %%
KINDS = {"DeltaNet mixers": DELTANET, "attention mixers": ATTENTION, "all mixers": None}
with ql.interventions.cache_activations(ckpt.model, "layers.*.mixer") as taken:
    logprobs(source)


def together(found, target):
    """Statistics of all mixers of a kind patched at once, at the positions of `found`."""
    rows = [
        [
            of_answers(
                logprobs(target, ql.interventions.Patch("layers.*.mixer", kind=kind, of=taken, positions=[position]))
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
# Two things that have to do nothing, and one that shows what any disturbance does.
#
# 1. **The text into itself.** A value is replaced by what it is anyway. Every logit has to stay the same, bit for bit.
# 2. **Before the change.** Up to the first token in which the texts differ both have been read alike, so patching there
#    has to change nothing beyond rounding. The token before the changed one is among the positions above for that.
# 3. **Another text.** The stream is replaced by what it was in a text of the same form that tells and asks for other
#    things. That disturbs as much, and knows nothing of the answer. It need not do *nothing*: a model that was sure of
#    the target's answer becomes less sure, and every other digit likelier, the source's among them. What another text
#    restores is therefore the height from which on a share at that position says something.

# %%
with ql.interventions.cache_activations(ckpt.model, "layers.*.*") as own:
    before = logprobs(other_value)
words = dict.fromkeys(site.rpartition(".")[2] for site in own.sites)
same = {
    word: torch.equal(logprobs(other_value, ql.interventions.Patch(f"layers.*.{word}", of=own)), before)
    for word in words
}
changes = [
    np.abs(value_data["logprob"] - value_data["target_logprob"]).sel(position=TOLD - 1).values.max(),
    np.abs(key_data["logprob"] - key_data["target_logprob"]).sel(position=KEY - 1).values.max(),
]
Markdown(
    f"1. Patched with their own values in all layers and at all positions, **{sum(same.values())} of {len(same)}** "
    f"sorts of value ({', '.join(same)}) leave every logit as it was, bit for bit.\n"
    f"2. Before the change the largest difference of any log-probability is **{max(changes):.1e} nat**."
)

# %%
strange_data = patched(stranger, other_value, [TOLD, KEY, MARK], parts=("residual",))
strange_data = strange_data.assign(source_logprob=value_data["source_logprob"])  # the same total, for the same scale
strange = ql.stats.patching(strange_data)
notebook.show(
    "another_text",
    ql.plots.patching(strange),
    "Share of the answer restored by the stream of an unrelated text, layers by positions, on the scale of the source.",
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
    "Most other keys ask for a pair that was never told, and leave the model unsure; the right key restores "
    f"{restored(key_most)} where the texts differ in the question."
)

# %% [markdown]
# What this cannot tell. A value that restores the answer is *enough* for it, with all else as in the target; whether it
# is *needed* is asked by taking it away, in [40_ablations](40_ablations.py). A value that restores nothing may still be
# needed. Where several values carry the answer, each alone may look idle. And all of it is said of this form of text:
# of other tasks, lengths and distances nothing was asked.
#
# ## What is kept
#
# The recording has every log-probability of every pair of texts. `ql.stats.patching(recording)` reads the first
# comparison, and `ql.stats.patching(recording["another_key"])` the second, on any machine, without torch.

# %%
kept = {"patching": value_data, "another_key": key_data, "another_text": strange_data}
notebook.save(recording=ql.Recording(kept, value_data.attrs))
