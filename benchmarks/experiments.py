"""`python -m benchmarks.experiments`: time of a sweep of short runs, and of queries to a store of many runs."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jupytext
import papermill
import typer
from rich.console import Console
from tqdm.auto import tqdm

from benchmarks import stores
from benchmarks.__main__ import machine
from qwenlab import experiments

NOTEBOOK = """\
# %% tags=["parameters"]
checkpoint: str = "toy-moe"
max_tokens: int = 64
seed: int = 0

# %%
import torch

import qwenlab as ql

torch.set_num_threads(1)
ckpt = ql.open(checkpoint)
with ql.watch(ckpt, *ql.probes.defaults(ckpt)) as seen:
    ql.tasks.feed(ckpt, ql.tasks.texts("code", 2), max_tokens=max_tokens)
half_life = ql.stats.half_life(seen.recording())["half_life_mean_log"]

# %%
ql.experiments.record(half_life=float(half_life.median()))
"""
SPEC = """\
question: How long does a sweep of short runs take?
notebook: short.py
sweep: {grid: {max_tokens: [16, 32, 48, 64]}}
seeds: [0, 1, 2]
metrics: {half_life: {units: token}}
"""

console = Console(width=120)


def sweep(folder: Path) -> dict[str, Any]:
    """Seconds and weight loads of twelve runs on a toy: with papermill alone, in cold kernels, and in a warm kernel."""
    experiment = folder / "short"
    experiment.mkdir()
    (experiment / "short.py").write_text(NOTEBOOK)
    (experiment / "spec.yaml").write_text(SPEC)
    points = experiments.plan(experiment).points
    seconds = {"papermill alone": _papermill_alone(experiment, points, folder)}
    loads = {"papermill alone": len(points)}
    for name, warm in (("cold kernels", False), ("one warm kernel", True)):
        began = time.perf_counter()
        done = experiments.run(experiment, store=folder / name, warm=warm)
        seconds[name] = time.perf_counter() - began
        assert done.complete, done
        loads[name] = sum(outcome.used["loads"] for outcome in done.outcomes)
    ratio = seconds["papermill alone"] / seconds["one warm kernel"]
    return {"runs": len(points), "seconds": seconds, "loads of weights": loads, "papermill alone over warm": ratio}


def _papermill_alone(experiment: Path, points: Any, folder: Path) -> float:
    notebook = folder / "short.ipynb"
    jupytext.write(jupytext.read(experiment / "short.py"), notebook)
    began = time.perf_counter()
    for number, point in enumerate(tqdm(points, desc="papermill alone", unit="run")):
        papermill.execute_notebook(
            notebook,
            folder / f"alone-{number}.ipynb",
            point.given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    return time.perf_counter() - began


def main(many: int = 10_000, out: Path = Path("benchmarks/results")) -> None:
    """Measure both, print them, and write them with the machine."""
    with tempfile.TemporaryDirectory() as here:
        results = {"machine": machine(), "sweep": sweep(Path(here))}
        console.print_json(data=results["sweep"])
        results["store"] = stores.measure(Path(here) / "store", many)
        console.print_json(data=results["store"])
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"experiments-{datetime.now(UTC):%Y-%m-%d}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {file}")


if __name__ == "__main__":
    sys.exit(typer.run(main))
