# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What each kind of layer carries, on one checkpoint
#
# One point of [the experiment](spec.yaml): `qwenlab run experiments/functional-ablation` runs all of them, and
# `report.py` writes [REPORT.md](REPORT.md) from the store. The protocol is that of
# [arXiv:2603.22473](https://arxiv.org/abs/2603.22473); [protocol.py](protocol.py) says what is ablated and what it is
# held against. Every word used for a number is defined in [the glossary](../../docs/glossary.md).

# %% tags=["parameters"]
checkpoint: str = "toy-moe"  # a shipped toy, a folder, or a name on the hub such as "Qwen/Qwen3.5-0.8B-Base"
pairs: list[int] = [2, 8, 16, 32, 48]  # of the recall task
texts: int = 16  # sequences of each task; for every p to be small enough 14 or more
tokens: int = 128  # of each passage of prose and code, and of the haystack
prose: str | None = None  # a text file, read instead of held-out prose; the paper's: WikiText-2's validation split
trials: int = 5  # random controls of each ablation
batch_size: int = 16  # sequences read at a time
keep: str | None = ".kept"  # folder in which an unfinished run leaves what it has done, to go on from; None: nowhere
device: str | None = None  # None: the CPU
dtype: str | None = None  # None: the checkpoint's own
seed: int = 0  # of tasks and controls

# %%
from pathlib import Path

import protocol
import torch
import transformers
import xarray as xr

import qwenlab as ql

transformers.logging.set_verbosity_error()  # which kernels ran is written in the recording
ckpt = ql.open(checkpoint, device=device, dtype=dtype)
if ckpt.facts.parameters < 1e8:
    torch.set_num_threads(1)  # matrices this small gain nothing from more

# %% [markdown]
# Plain text is cut into passages of one length; the recall tasks are made of the checkpoint's own tokens, with answers
# that are known exactly.

# %%
written = {
    "prose": Path(prose).read_text() if prose else "\n".join(ql.tasks.texts("prose")),
    "code": "\n".join(ql.tasks.texts("code")),
}
plain = {
    name: ql.tasks.text_task(ckpt, ql.tasks.passages(ckpt, text, tokens=tokens, count=texts), name=name)
    for name, text in written.items()
}
recall = [ql.tasks.mqar(ckpt, pairs=each, count=texts, seed=seed, name=f"recall of {each} pairs") for each in pairs]
found = [
    ql.tasks.needle(ckpt, length=tokens, position=0.5, count=texts, seed=seed, name="needle"),
    ql.tasks.induction(ckpt, length=min(tokens, 64), count=texts, seed=seed, name="induction"),
]
tasks = [*plain.values(), *recall, *found]
tasks

# %%
chosen = protocol.ablations(ckpt, trials=trials, seed=seed)
print(len(chosen), "ablations, of which", sum(bool(each.control_of) for each in chosen), "controls")
[each.name for each in chosen if not each.control_of]

# %%
kept = None
if keep is not None:
    kept = Path(keep) / f"{checkpoint.replace('/', '--')}-{seed}.npz"
    kept.parent.mkdir(exist_ok=True)
sweep = ql.ablations.sweep(ckpt, chosen, tasks, batch_size=batch_size, resume=kept)
contributions = protocol.contributions(ckpt, plain["prose"].tokens)

# %%
loss, accuracy = (ql.stats.ablations(sweep, score=score) for score in ("loss", "accuracy"))
asked = accuracy.sel(task=[task.name for task in (*recall, *found)])


def bare(values: xr.DataArray) -> xr.DataArray:
    """Without what else is known of the ablations and layers."""
    return values.reset_coords(drop=True)


ql.experiments.record(
    loss_rise=bare(loss["effect"]),
    accuracy_fall=bare(asked["effect"]),
    clean_loss=bare(loss["clean_loss"]),
    clean_accuracy=bare(asked["clean_accuracy"]),
    norm_change=bare(contributions["norm_change"].mean("text")),
    cosine=bare(contributions["cosine"].mean("text")),
    mixer_ratio=bare(contributions["mixer_ratio"].mean("text")),
    lens_kl=bare(contributions["lens_kl"].mean("text")),
    datasets={"sweep": sweep, "contributions": contributions},
)
if kept is not None:
    kept.unlink(missing_ok=True)
loss["effect"].to_series().unstack("task")
