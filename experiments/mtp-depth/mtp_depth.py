# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many drafts per round, on one kind of text
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/mtp-depth` runs all of them, and `report.py`
# writes [REPORT.md](REPORT.md) from the store. The text is decoded once, at the greatest depth; the rounds of every
# smaller depth are replayed from a trace of it. Every word used for a number is defined in
# [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a checkpoint with an MTP head
domain: str = "code"  # whose held-out texts give the prompts
prompts: int = 12  # intervals need two or more
max_tokens: int = 64  # of each prompt
new_tokens: int = 96  # decoded after each prompt
depth: int = 8  # drafts per round, at most
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
seed: int = 0  # draws which texts are read

# %%
import numpy as np
import torch
import transformers

import qwenlab as ql

transformers.logging.set_verbosity_error()
ckpt = ql.open(checkpoint, device=device, dtype=dtype)
if ckpt.facts.parameters < 1e8:
    torch.set_num_threads(1)  # matrices this small gain nothing from more

# %%
known = ql.tasks.texts(domain)
drawn = np.random.default_rng(seed).choice(len(known), min(prompts, len(known)), replace=False)
begun = [ckpt.tokenizer(known[index])["input_ids"][:max_tokens] for index in drawn]
made = ql.speculative.generate(ckpt, begun, depth=depth, max_new_tokens=new_tokens, labels=[domain] * len(begun))
lossless = ql.speculative.check_lossless(ckpt, begun[:2], depth=depth, max_new_tokens=min(new_tokens, 32))
lossless

# %%
trace = ql.speculative.trace(ckpt, made, depth=depth)
ledgers = [trace.replay(depth=d) for d in range(1, depth)] + [made.recording()]
by_depth = ql.stats.by_depth(ledgers)
threshold = ql.stats.acceptance(trace.replay(policy=ql.speculative.Threshold(0.5)))

# %%
costs = ql.speculative.step_times(ckpt, max(made.tokens, key=len), depth=depth)
speedup = ql.stats.speedup(made.ledger, costs)

# %%
ql.experiments.record(
    acceptance_length=by_depth["acceptance_length"],
    draft_efficiency=by_depth["draft_efficiency"],
    conditional=ql.stats.acceptance(made.ledger)["conditional"],
    teacher_forced=ql.stats.agreement(trace.recording())["teacher_forced"],
    speedup=speedup["speedup"],
    measured_speedup=float(speedup["measured_speedup"].sel(depth=depth)),
    threshold_length=float(threshold["acceptance_length"]),
    threshold_efficiency=float(threshold["draft_efficiency"]),
    lossless=float(bool(lossless)),
    datasets={"rounds": made.recording()},
)
by_depth[["acceptance_length", "draft_efficiency"]].to_dataframe()
