"""One small experiment, run through the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from evidence.reference.names import get, path
from evidence.reference.results import Cases

SPEC = {
    "question": "Does the half-life depend on the context?",
    "notebook": "small.py",
    "sweep": {"grid": {"context": [24, 40]}},
    "metrics": {
        "loss": {"units": "nat/token", "better": "lower", "meaning": "mean loss"},
        "half_life": {"units": "token", "over": ["layer"], "meaning": "median over heads"},
    },
}
NOTEBOOK = """\
# %% tags=["parameters"]
context: int = 16
seed: int = 0

# %%
import torch
import qwenlab as ql

torch.set_num_threads(1)
checkpoint = ql.open("toy-moe", device="cpu", dtype="float32")
text = ql.{texts}("code")[seed]
ids = checkpoint.tokenizer(text, return_tensors="pt").input_ids[:, :context]
with torch.no_grad(), ql.{watch}(checkpoint.model, *ql.{thorough}(checkpoint.model)[:1]) as seen:
    loss = checkpoint.model(ids, labels=ids).loss
lives = ql.{half_life}(seen.recording())

# %%
ql.{record}(datasets={{"lives": lives}}, loss=float(loss), half_life=lives["half_life_mean_log"].median("head"))
"""
USED = {
    "texts": "tasks.texts",
    "watch": "watch",
    "thorough": "probe.thorough",
    "half_life": "stats.half_life",
    "record": "runs.record",
}


def cases() -> Cases:
    """Yield the experiment."""
    yield "experiment/metrics and datasets", experiment


def experiment() -> Any:
    """The metrics and datasets of an experiment with two points, without the names of its runs, which are hashes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, store = Path(temporary, "small"), str(Path(temporary, "store"))
        folder.mkdir()
        (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
        (folder / "small.py").write_text(NOTEBOOK.format(**{name: path(full) for name, full in USED.items()}))
        get("runs.run")(folder, store=store)
        return {
            "metrics": get("runs.metrics")("small", store=store).drop(columns="name"),
            "datasets": get("runs.datasets")("lives", "small", store=store).drop_vars("run"),
        }
