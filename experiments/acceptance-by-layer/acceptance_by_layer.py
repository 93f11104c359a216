# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What ablating a layer does to the acceptance of drafts, on one checkpoint
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/acceptance-by-layer` runs all of them, and
# `report.py` writes [REPORT.md](REPORT.md) from the store. Every word used for a number is defined in
# [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a checkpoint with an MTP head
texts_per_domain: int = 14  # held-out texts; 13 or more, or no p of four domains can be small enough
max_tokens: int = 128  # of each text
prompts_per_domain: int = 4  # beginnings of other held-out texts, which the model goes on with
prompt_tokens: int = 48  # of each prompt
new_tokens: int = 32  # decoded after each prompt
depth: int = 3  # drafts per round
trials: int = 5  # random controls of each ablation
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
seed: int = 0  # of the controls

# %%
from dataclasses import replace

import torch
import transformers

import qwenlab as ql
from qwenlab.ablations import acceptance, controls, units

transformers.logging.set_verbosity_error()  # which kernels ran is written in the recording
ckpt = ql.open(checkpoint, device=device, dtype=dtype)
if ckpt.facts.parameters < 1e8:
    torch.set_num_threads(1)  # matrices this small gain nothing from more

# %% [markdown]
# Each mixer alone, each MLP alone, and all mixers of a kind. A mixer is held against other mixers, an MLP against other
# MLPs, a kind against as many parameters in other mixers and MLPs. The head is never edited: it drafts from the hidden
# states of the edited trunk.

# %%
kinds = {"linear_attention": "all DeltaNet", "full_attention": "all attention"}
mixers, mlps = units(ckpt, "mixer"), units(ckpt, "mlp")
whole = [replace(each, name=kinds[each.kind]) for each in units(ckpt, "kind")]
of_kinds = [*whole, *controls(whole, [*mixers, *mlps], match="parameters", number=trials, seed=seed)]
of_layers = [each for parts in (mixers, mlps) for each in (*parts, *controls(parts, parts, number=trials, seed=seed))]
[each.name for each in (*of_kinds, *of_layers) if not each.control_of]

# %% [markdown]
# ## Along given texts
#
# The text stays the same under every ablation, and its own tokens are taken as the target model's choices. Only the
# drafts of the head change: they show whether the hidden states still predict what follows.

# %%
given, begun = {}, {}
for domain in ql.tasks.DOMAINS:
    known = [ckpt.tokenizer(text)["input_ids"] for text in ql.tasks.texts(domain)]
    given[domain] = [tokens[:max_tokens] for tokens in known[:texts_per_domain]]
    begun[domain] = [tokens[:prompt_tokens] for tokens in known[-prompts_per_domain:]]


def labelled(by_domain: dict[str, list[list[int]]]) -> dict[str, list]:
    """Texts, and the domain of each."""
    labels = [domain for domain, texts in by_domain.items() for _ in texts]
    return {"texts": [text for texts in by_domain.values() for text in texts], "labels": labels}


along_texts = acceptance(ckpt, [*of_kinds, *of_layers], **labelled(given), depth=depth)

# %% [markdown]
# ## In the model's own text
#
# The edited model writes, and its own choices are what drafts are compared with. An ablation that makes the text dull
# makes it easy to draft, so that acceptance can rise while the model breaks: without the first number this one says
# nothing of the head.

# %%
of_mixers = [*mixers, *controls(mixers, mixers, number=trials, seed=seed)]
own_text = acceptance(ckpt, [*of_kinds, *of_mixers], **labelled(begun), depth=depth, max_new_tokens=new_tokens)

# %%
along = ql.stats.ablated_acceptance(along_texts)
own = ql.stats.ablated_acceptance(own_text, by_label=False)


def bare(values):
    """Without what else is known of the ablations."""
    return values.reset_coords(drop=True)


ql.experiments.record(
    fall=bare(along["effect"]),
    fall_in_own_text=bare(own["effect"].isel(task=0)),
    clean_acceptance_length=bare(along["clean_acceptance_length"]),
    clean_acceptance_length_in_own_text=float(own["clean_acceptance_length"].isel(task=0)),
    datasets={"along_texts": along_texts, "own_text": own_text},
)
along["effect"].to_series().unstack("task")
