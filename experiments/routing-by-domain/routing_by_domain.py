# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What experts tell of the domain, at one number of texts
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/routing-by-domain` runs all of them, and
# `report.py` writes [REPORT.md](REPORT.md) from the store. Every word used for a number is defined in
# [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a checkpoint with a mixture of experts
texts_per_domain: int = 8  # the control needs two or more
max_tokens: int = 256  # read of each text
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
rng = np.random.default_rng(seed)
with ql.watch(ckpt, ql.probes.Routing(every=1)) as seen:
    for domain in ql.tasks.DOMAINS:
        known = ql.tasks.texts(domain)
        texts = [known[index] for index in rng.choice(len(known), texts_per_domain, replace=False)]
        with seen.label(domain):
            ql.tasks.feed(ckpt, texts, max_tokens=max_tokens)
recording = seen.recording()

# %%
special = ql.stats.specialisation(recording)
ql.experiments.record(
    information=special["information"],
    shuffled=special["shuffled"],
    p_value=special["p_value"],
    load_variation=ql.stats.expert_load(recording)["variation"],
    switch_rate=ql.stats.routing(recording)["switch_rate"],
    never_used=ql.stats.unused_experts(recording)["unused_final"],
    datasets={"recording": recording},
)
special[["information", "shuffled", "p_value"]].to_dataframe()
