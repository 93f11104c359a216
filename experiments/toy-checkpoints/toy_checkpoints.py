# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a toy was taught, measured on held-out text
#
# `qwenlab run experiments/toy-checkpoints` measures both toys that ship, and `report.py` writes [REPORT.md](REPORT.md)
# from the store. With `--set train=true` each is trained from scratch first, which takes about 107 minutes on one core;
# a training that was stopped goes on where it was.

# %% tags=["parameters"]
from typing import Literal

checkpoint: Literal["toy-dense", "toy-moe"] = "toy-moe"
train: bool = False  # train it first; False: measure the files that ship
device: str | None = None  # None: the CPU
folder: str = "../../runs/toy-trainings"  # where a training keeps its state

# %%
import json
from dataclasses import asdict
from pathlib import Path

import evaluate
import torch
import xarray as xr

import qwenlab as ql

torch.set_num_threads(1)  # matrices this small gain nothing from more
place = Path(folder) / checkpoint

# %%
if train:
    import export
    import train as training

    place.mkdir(parents=True, exist_ok=True)
    recipe = training.Recipe()
    job = training.Training(checkpoint, training.tokenizer_at(place), recipe, training.domains(), device or "cpu")
    (place / "recipe.json").write_text(json.dumps({"name": checkpoint, **asdict(recipe)}, indent=2))
    training.run(job, place)
    export.export(place, checkpoint, place / "checkpoint")
ckpt = ql.open(place / "checkpoint" if train else checkpoint, device=device)
ckpt


# %%
def over(dim, values):
    """A labelled row of numbers."""
    return xr.DataArray(list(values.values()), dims=dim, coords={dim: list(values)})


def means(values):
    return {int(pairs): value["mean"] for pairs, value in values.items()}


losses = evaluate.losses(ckpt)
ql.experiments.record(under_unigram=over("domain", {domain: loss["under_unigram"] for domain, loss in losses.items()}))

# %%
recall = evaluate.recall(ckpt)
ql.experiments.record(recall=over("pairs", means(recall)))

# %%
carriers = evaluate.carriers(ckpt)
rows = xr.concat([over("pairs", means(values)) for values in carriers.values()], "zeroed")
ql.experiments.record(recall_without=rows.assign_coords(zeroed=list(carriers)))

# %%
drafts = evaluate.drafts(ckpt)
ql.experiments.record(
    agreement=over("domain", {domain: draft["agreement"]["mean"] for domain, draft in drafts.items()}),
    agreement_over_shuffled=over("domain", {domain: draft["over shuffled"] for domain, draft in drafts.items()}),
    agreement_over_strangers=over("domain", {domain: draft["over strangers"] for domain, draft in drafts.items()}),
)

# %%
routed = checkpoint == "toy-moe"
routing = evaluate.routing(ckpt) if routed else None
nothing = {layer: float("nan") for layer in range(len(ckpt.anatomy.layer_types))}
ql.experiments.record(
    experts_never_used=routing["never used"] if routed else float("nan"),
    specialisation_p_value=over("layer", dict(enumerate(routing["specialisation"]["p_value"])) if routed else nothing),
)

# %% [markdown]
# What the report is made of, intervals included, as JSON.

# %%
results = {
    "hash": ckpt.facts.hash,
    "parameters": ckpt.facts.parameters,
    "losses": losses,
    "recall": recall,
    "carriers": carriers,
    "drafts": drafts,
} | ({"routing": routing} if routed else {})
ql.experiments.record(datasets={"results": xr.Dataset(attrs={"json": json.dumps(results)})})
