"""Runs of one sweep in warm kernels: what one of them patches or breaks does not reach the others."""

import json
from pathlib import Path

import jupytext
import pytest

from qwenlab.execution.engine import release
from qwenlab.experiments import run
from qwenlab.experiments.record import read_metrics
from tests.execution.conftest import printed

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

PATCHES = """\
# %% tags=["parameters"]
uniform_gate: bool = False

# %%
import torch
import transformers.models.qwen3_5.modeling_qwen3_5 as mod

import qwenlab as ql

if uniform_gate:
    mod.F.silu = lambda x, *args, **kwargs: x
ckpt = ql.open("toy-dense")
ids = torch.arange(5, 69)[None]
with torch.no_grad():
    loss = float(ckpt.model(ids, labels=ids).loss)
ql.experiments.record(loss=loss)
"""

BREAKS = """\
# %% tags=["parameters"]
x: int = 1

# %%
import os
import torch

import qwenlab as ql

print(os.getpid())
torch.zeros(1)  # what a CUDA kernel does once an assertion failed on the device

# %%
if x == 2:
    def broken(*args, **kwargs):
        raise RuntimeError("device-side assert triggered")
    torch.zeros = broken
torch.zeros(1)
ql.experiments.record(loss=float(x))
"""


def loss(outcome) -> float:
    return float(read_metrics(Path(outcome.where) / "metrics.parquet")["value"].item())


def pids(folder: Path) -> list[str]:
    """Of the kernels that the runs and attempts of a store used, in the order in which they began."""
    found = [*folder.glob("small/*/facts.json")]
    began = sorted(found, key=lambda file: json.loads(file.read_text())["began"])
    return [printed(jupytext.read(file.parent / "notebook.ipynb")) for file in began]


def test_a_function_that_one_run_patches_is_whole_in_the_next(experiment, tmp_path):
    release()
    folder = experiment(PATCHES, sweep={"grid": {"uniform_gate": [True, False]}})
    warm, cold = (run(folder, store=tmp_path / name, warm=name == "warm") for name in ("warm", "cold"))
    assert [loss(each) for each in warm.outcomes] == [loss(each) for each in cold.outcomes]
    assert len({loss(each) for each in warm.outcomes}) == 2
    assert [each.used["changed"] for each in warm.outcomes] == [["torch.nn.functional.silu"], []]
    logs = [(Path(each.where) / "log.txt").read_text() for each in warm.outcomes]
    assert "changed by this run: torch.nn.functional.silu; the kernel is replaced" in logs[0]
    assert "replaced" not in logs[1]


def test_a_run_that_breaks_its_process_is_tried_again_in_another_and_the_others_finish(experiment, tmp_path):
    release()
    folder = experiment(BREAKS, sweep={"grid": {"x": [1, 2, 3, 4, 5]}}, retries=1)
    result = run(folder, store=tmp_path / "store")
    assert [each.state for each in result.outcomes] == ["finished", "failed", "finished", "finished", "finished"]
    assert "RuntimeError: device-side assert triggered" in result.of("failed")[0].reason
    first, second, third, *others = pids(tmp_path / "store")
    assert first == second != third  # 1 and 2, then 2 again
    assert len({first, third, *others}) == 3
    assert len(others) == 3
