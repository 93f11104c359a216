# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Acceptance of drafts
#
# A multi-token-prediction head drafts the next few tokens. The target model verifies them in one forward pass and
# accepts those it would have written itself. The speed-up depends on how many it accepts. The literature calls five
# different numbers "acceptance rate". And most hybrid models cannot undo a rejected draft exactly, because the
# recurrent states of their DeltaNet layers have already read it. This notebook measures, on one checkpoint, whether
# the head is wired correctly, whether drafting changes the text, how many drafts are accepted, and whether drafting
# is faster.
#
# [The glossary](../docs/glossary.md) defines every quantity, and how vLLM, SGLang and llama.cpp count it. Intervals are
# 95 %, over whole prompts, because rounds of one text are not independent. Few prompts make them wider, and a rate of
# 100 % has an interval too.

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.6-35B-A3B"
texts_per_domain: int = 6  # prompts; two or more for intervals
max_tokens: int = 64  # of each prompt
new_tokens: int = 64  # decoded after each prompt
depth: int = 4  # drafts per round, at most
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
out: str | None = None  # folder for the recording and the figures; None saves nothing

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
# ## Is the head wired correctly?
#
# The head pairs the token *x*[*p*+1] with the hidden state *h*[*p*] of the previous position, after the target
# model's final norm. With the state before that norm, swapped input halves, or the wrong convention for norm weights
# it still runs, but drafts worse. So the audit tries every setting on your texts and reports which one fits the
# weights. Controls show what such a head does by chance.

# %%
audit = ql.speculative.audit(ckpt, prompts)
audit

# %% [markdown]
# ## Draft, verify, roll back
#
# In each round the head drafts up to `depth` tokens. The target model reads them in one pass, accepts the longest
# prefix that it would have written itself, and adds one token of its own. Then the states are rolled back as if the
# rejected drafts had never been read. Under the rule `greedy` the text is that of plain greedy decoding.

# %%
made = ql.speculative.generate(ckpt, prompts, depth=depth, max_new_tokens=new_tokens, labels=labels)
ql.widgets.strip(made.ledger, lambda token: ckpt.tokenizer.decode([token]))

# %% [markdown]
# ## Is it lossless?
#
# This needs a check: a state that was not rolled back raises no error, but corrupts the text that follows. The check
# reads the same tokens one by one into a second cache, without speculation, and compares all states after every
# round. It measures the noise floor on the same texts: the difference that comes from reading in wider blocks alone.

# %%
lossless = ql.speculative.check_lossless(ckpt, prompts[:2], depth=depth, max_new_tokens=min(new_tokens, 48))
lossless

# %% [markdown]
# The same check on a broken rollback. Like transformers' own `crop` (after `activate_past_recording`; without it,
# `crop` raises) it does not restore the recurrent states. Nothing crashes, and much of the text even stays the same.


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
# ## How many drafts are accepted
#
# The *unconditional* rate at position *i* is the share of rounds with a draft at *i* in which all drafts up to *i*
# were accepted. The *conditional* rate counts only tested drafts, whose predecessors were all accepted. The
# acceptance length is the mean number of tokens per round. Rounds cut short by the end of a text are not counted as
# complete.

# %%
recording = made.recording()
rates = ql.stats.acceptance(recording)
notebook.show(
    "acceptance", ql.plots.acceptance(rates), "Share of drafts accepted by position in the round, with intervals."
)

# %%
by_label = ql.stats.acceptance(recording, by="label")
columns = {
    "acceptance length (tokens per round)": "acceptance_length",
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
    "Share of drafts accepted by position in the round, by domain.",
)

# %% [markdown]
# Drafts are harder where the target model is uncertain. Here are the tested drafts by the target's entropy. With few
# prompts some bins have few drafts, as the intervals show.

# %%
notebook.show(
    "acceptance_by_entropy",
    ql.plots.acceptance(ql.stats.acceptance(recording, by="entropy")),
    "Share of tested drafts accepted, by the target model's entropy.",
)

# %% [markdown]
# The head is calibrated if the probability of its draft predicts how often that draft is accepted. A policy that
# stops at unlikely drafts relies on this.

# %%
notebook.show(
    "calibration",
    ql.plots.calibration(ql.stats.calibration(recording)),
    "Share of tested drafts accepted, by the head's own probability.",
)

# %% [markdown]
# ## Trace once, replay any policy
#
# A trace has every draft at every position of a text, made in a few parallel passes. It gives the rounds of any depth
# and any policy without running the model again. On the model's own greedy text they equal the rounds of the online
# run. The table is for the rule `greedy`, with up to `depth` drafts per round.

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
        "acceptance length (tokens per round)": ql.notebook.interval(found, "acceptance_length"),
        "accepted / drafted": ql.notebook.interval(found, "draft_efficiency"),
        "rounds": int(found["rounds"]),
    }
pd.DataFrame(table).T

# %% [markdown]
# ### Teacher-forced and online are different numbers
#
# *Teacher-forced* agreement uses every position of a text. Online, a round begins where the last one ended, and most
# rounds end at a failed draft: in a hard stretch. So the first draft is accepted less often online. That is a selection
# effect, not an error of the rollback.

# %%
forced = ql.stats.agreement(trace.recording())
notebook.show(
    "teacher_forced",
    ql.plots.agreement(forced, rates),
    "Teacher-forced agreement and online acceptance by draft position.",
)

# %% [markdown]
# ## The rate depends on the rule
#
# With a temperature, two rules preserve the target model's distribution: *exact match* samples a token and compares it,
# *speculative sampling* (Leviathan et al. 2023) accepts as often as the two distributions overlap. Their rates differ
# for the same head and temperature, and both are correct.

# %%
rules = {}
for rule in ("exact_match", "speculative_sampling"):
    sampled = ql.speculative.generate(
        ckpt, prompts, depth=depth, max_new_tokens=new_tokens // 2, rule=rule, temperature=0.7, labels=labels
    )
    found = ql.stats.acceptance(sampled.ledger)
    rules[f"{rule}, temperature 0.7, depth {depth}"] = {
        "acceptance length (tokens per round)": ql.notebook.interval(found, "acceptance_length"),
        "rounds": int(found["rounds"]),
    }
rules[f"greedy, depth {depth}"] = {
    "acceptance length (tokens per round)": ql.notebook.interval(rates, "acceptance_length"),
    "rounds": int(rates["rounds"]),
}
pd.DataFrame(rules).T

# %% [markdown]
# ## Is drafting faster?
#
# A round costs its drafts, one pass over a block of `depth` + 1 tokens, and a rollback. This cell measures each, on
# this machine, after a context of real text. Together with the rates above they predict the speed at every depth; the
# figure also shows the measured speed of the rounds above. On a CPU a block of several tokens costs more than one
# token; on a GPU, a large model is limited by memory bandwidth and the block costs nearly the same.

# %%
costs = ql.speculative.step_times(ckpt, max(made.tokens, key=len), depth=depth)
costs[["plain_step", "draft_step", "rollback", "overhead", "verify_step"]].to_dataframe()

# %%
speedup = ql.stats.speedup(made.ledger, costs)
notebook.show("speedup", ql.plots.speedup(speedup), "Tokens per round and speed-up by depth, with the break-even line.")

# %%
best, predicted = int(speedup["best_depth"]), float(speedup["speedup"].max())
measured = float(speedup["measured_speedup"].sel(depth=depth))
advice = (
    f"**{best} drafts per round** are best here, with a predicted **{predicted:.2f} times** the speed of plain decoding"
    if best
    else f"no depth pays here: at best **{predicted:.2f} times** the speed of plain decoding is predicted"
)
Markdown(f"By these costs {advice}. With {depth} drafts per round **{measured:.2f} times** were measured.")

# %% [markdown]
# In a mixture of experts, a block of tokens uses more experts than one token, and each is read once per block.

# %%
if "expert_choice" in costs:
    union = ql.stats.expert_union(costs["expert_choice"], widths=range(1, depth + 2))
    megabytes = union["experts_touched"] * costs.attrs["bytes_per_expert"] * costs.attrs["moe_layers"] / 1e6
    display(
        union[["experts_touched"]]
        .assign(independent=union["independent"].mean("layer"), megabytes=megabytes)
        .to_dataframe()
        .rename(columns={"independent": "by independent tokens", "megabytes": "expert weights read (MB)"})
    )

# %% [markdown]
# ## Saved files

# %%
notebook.save(recording=recording, trace=trace)
