# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How far a draft carries: acceptance
#
# A multi-token-prediction head drafts the next few tokens; the main model reads all of them in one forward pass and
# keeps those it would have written itself. Whether that pays hangs on how many it keeps. Five different numbers are
# called "acceptance rate" in the literature, and most hybrids cannot even take a rejected draft back exactly: the
# recurrent states of their DeltaNet layers have read it. This notebook measures, on one checkpoint, whether the head
# is wired right, whether drafted text is the text that plain decoding writes, how many drafts are accepted, and
# whether that makes it faster.
#
# Every word used for a number is defined in [the glossary](../docs/glossary.md), with how vLLM, SGLang and llama.cpp
# count the same. Intervals are at 95 %, over whole prompts: rounds of one text resemble each other. Few prompts make
# them wider, and also a rate of 100 % has one.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 6  # prompts; intervals need two or more
max_tokens: int = 64  # of each prompt
new_tokens: int = 64  # decoded after each prompt
depth: int = 4  # drafts a round, at most
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None keeps nothing

# %%

import pandas as pd
from IPython.display import Markdown, display

import qwenlab as ql

notebook = ql.notebook.start(out)


# %%
ckpt = notebook.open(checkpoint, device=device, dtype=dtype)
ckpt

# %%
prompts, labels = [], []
for domain in ql.tasks.DOMAINS:
    for text in ql.tasks.texts(domain, texts_per_domain):
        prompts.append(ckpt.tokenizer(text)["input_ids"][:max_tokens])
        labels.append(domain)

# %% [markdown]
# ## Is the head wired right?
#
# The head pairs the token *x*[*p*+1] with the hidden state *h*[*p*] of the position before it, after the main model's
# final norm. Fed with the state before that norm, with the halves of its input swapped, or with norm weights read
# with the wrong convention it still runs, and only drafts worse. So the audit tries each setting on your texts and
# says which the weights want. The controls beside it show what such a head can do by chance.

# %%
audit = ql.speculative.audit(ckpt, prompts)
audit

# %% [markdown]
# ## Draft, verify, roll back
#
# In each round the head drafts up to `depth` tokens; the main model reads them in one pass; the longest run that it
# would have written itself is accepted, and it adds one token of its own. Then the states are rolled back to what
# they would be had the rejected drafts never been read. Under the rule `greedy` the text is that of plain greedy
# decoding.

# %%
made = ql.speculative.generate(ckpt, prompts, depth=depth, max_new_tokens=new_tokens, labels=labels)
ql.widgets.strip(made.ledger, lambda token: ckpt.tokenizer.decode([token]))

# %% [markdown]
# ## Is it lossless?
#
# That can be checked, and has to be: a state that was not rolled back raises no error, and only spoils what follows.
# Beside the drafted text another cache reads the same tokens one by one and never speculates. After every round all
# states are compared; what reading in wider blocks alone does to them, the noise floor, is measured on the same texts.

# %%
lossless = ql.speculative.check_lossless(ckpt, prompts[:2], depth=depth, max_new_tokens=min(new_tokens, 48))
lossless

# %% [markdown]
# The same check on a rollback that forgets one thing. It does not restore the recurrent states, as transformers' own
# `crop` does not (after `activate_past_recording`; without it, `crop` raises). Nothing crashes, and much of the text
# even stays the same.


# %%
class Careless(ql.speculative.ReplayRollback):
    """Crops the attention layers and the convolution, and leaves the recurrent states as they are."""

    name = "careless"

    def keep(self, context, kept):
        after = [state.clone() for state in context.recurrent]
        super().keep(context, kept)
        for state, old in zip(context.recurrent, after, strict=True):
            state.copy_(old)


ql.speculative.check_lossless(ckpt, prompts[:2], depth=depth, max_new_tokens=min(new_tokens, 48), rollback=Careless)

# %% [markdown]
# ## How many are accepted
#
# *Unconditional* is the share of rounds that drafted place *i* in which all drafts up to *i* were accepted;
# *conditional* is the share of the drafts tested, those whose predecessors were all accepted. The acceptance length
# is the tokens a round emits, on average. No round cut by the end of a text is counted as if it were whole.

# %%
recording = made.recording()
rates = ql.stats.acceptance(recording)
notebook.show(
    "acceptance", ql.plots.acceptance(rates), "Share of drafts accepted by their place in the round, with intervals."
)

# %%
by_label = ql.stats.acceptance(recording, by="label")
columns = {
    "acceptance length (tokens a round)": "acceptance_length",
    "draft efficiency (accepted / drafted)": "draft_efficiency",
}
pd.DataFrame(
    {title: ql.notebook.intervals(by_label, name) for title, name in columns.items()}
    | {"rounds": by_label["rounds"].values, "prompts": by_label["prompts"].values},
    index=by_label["label"].values,
)

# %%
notebook.show(
    "acceptance_by_domain",
    ql.plots.acceptance(by_label),
    "Share of drafts accepted by their place in the round, by domain.",
)

# %% [markdown]
# Where the main model itself is undecided, a draft is harder to get right. Here are the tested drafts by its entropy in
# their place; a few prompts fill some bins with a few drafts only, which the intervals show.

# %%
notebook.show(
    "acceptance_by_entropy",
    ql.plots.acceptance(ql.stats.acceptance(recording, by="entropy")),
    "Share of tested drafts accepted against the entropy of the main model's distribution.",
)

# %% [markdown]
# And the head knows: the probability it gives its draft against how often that draft is accepted. This is what a
# policy that stops at unlikely drafts relies on.

# %%
notebook.show(
    "calibration",
    ql.plots.calibration(ql.stats.calibration(recording)),
    "Share of tested drafts accepted against the head's own probability.",
)

# %% [markdown]
# ## Trace once, replay any policy
#
# A trace holds every draft at every place of a text, made in a few parallel passes. From it the rounds of any depth
# and any policy follow without running the model again. On the model's own greedy text they are the rounds that were
# run, one for one. The table is of the rule `greedy`, up to `depth` drafts a round.

# %%
trace = ql.speculative.trace(ckpt, made, depth=depth)
replayed = trace.replay()["rounds"]
counts = ["begin", "drafted", "tested", "accepted", "emitted", "draft_token"]
print("the same rounds as online:", all((replayed[name].values == made.ledger[name].values).all() for name in counts))
trace

# %%
policies = {f"{n} drafts": ql.speculative.FixedDepth(n) for n in range(1, depth + 1)}
policies |= {f"until a draft is under {p}": ql.speculative.Threshold(p) for p in (0.3, 0.6, 0.9)}
table = {}
for name, policy in policies.items():
    found = ql.stats.acceptance(trace.replay(policy=policy))
    table[name] = {
        "acceptance length (tokens a round)": ql.notebook.interval(found, "acceptance_length"),
        "accepted / drafted": ql.notebook.interval(found, "draft_efficiency"),
        "rounds": int(found["rounds"]),
    }
pd.DataFrame(table).T

# %% [markdown]
# ### Along a text, and online: not the same number
#
# *Teacher-forced* agreement takes every place of a text. Online, a round begins where the last one ended, and most
# rounds end where a draft has just failed: in a hard stretch. So the first place is accepted less often online than
# teacher-forced. That is selection, and no fault of a rollback; both are shown, under their own names.

# %%
forced = ql.stats.agreement(trace.recording())
notebook.show(
    "teacher_forced",
    ql.plots.agreement(forced, rates),
    "Agreement at every place of the text beside acceptance online, by place in the draft.",
)

# %% [markdown]
# ## The rule is part of the number
#
# Under a temperature two rules keep the main model's distribution: *exact match* draws a token and compares, while
# *speculative sampling* (Leviathan et al. 2023) accepts as often as the two distributions overlap. The same head and
# the same temperature give different rates, and both are right.

# %%
rules = {}
for rule in ("exact_match", "speculative_sampling"):
    sampled = ql.speculative.generate(
        ckpt, prompts, depth=depth, max_new_tokens=new_tokens // 2, rule=rule, temperature=0.7, labels=labels
    )
    found = ql.stats.acceptance(sampled.ledger)
    rules[f"{rule}, temperature 0.7, depth {depth}"] = {
        "acceptance length (tokens a round)": ql.notebook.interval(found, "acceptance_length"),
        "rounds": int(found["rounds"]),
    }
rules[f"greedy, depth {depth}"] = {
    "acceptance length (tokens a round)": ql.notebook.interval(rates, "acceptance_length"),
    "rounds": int(rates["rounds"]),
}
pd.DataFrame(rules).T

# %% [markdown]
# ## Does it pay?
#
# A round costs its drafts, one pass over a block of `depth` + 1 tokens, and a rollback. Each is measured here, on this
# machine, after a context of real text. With the rates above they predict the speed at every depth; what the rounds
# above really took stands beside it. On a CPU a block of several tokens costs more than one token; on a GPU with a
# large model, which waits for weights, it costs nearly the same.

# %%
costs = ql.speculative.step_times(ckpt, max(made.tokens, key=len), depth=depth)
costs[["plain_step", "draft_step", "rollback", "overhead", "verify_step"]].to_dataframe()

# %%
speedup = ql.stats.speedup(made.ledger, costs)
notebook.show(
    "speedup", ql.plots.speedup(speedup), "Tokens a round and speed-up by depth, with where drafting breaks even."
)

# %%
best, predicted = int(speedup["best_depth"]), float(speedup["speedup"].max())
measured = float(speedup["measured_speedup"].sel(depth=depth))
advice = (
    f"**{best} drafts a round** are best here, with a predicted **{predicted:.2f} times** the speed of plain decoding"
    if best
    else f"no depth pays here: at best **{predicted:.2f} times** the speed of plain decoding is predicted"
)
Markdown(f"By these costs {advice}. With {depth} drafts a round **{measured:.2f} times** were measured.")

# %% [markdown]
# In a mixture of experts a block of tokens touches more experts than one token, and each is read once a block.

# %%
if "expert_choice" in costs:
    union = ql.stats.expert_union(costs["expert_choice"], widths=range(1, depth + 2))
    megabytes = union["experts_touched"] * costs.attrs["bytes_per_expert"] * costs.attrs["moe_layers"] / 1e6
    display(
        union[["experts_touched"]]
        .assign(independent=union["independent"].mean("layer"), megabytes=megabytes)
        .to_dataframe()
        .rename(columns={"independent": "of unrelated tokens", "megabytes": "read of experts (MB)"})
    )

# %% [markdown]
# ## What is kept

# %%
notebook.save(recording=recording, trace=trace)
