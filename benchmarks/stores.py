"""Time of queries to a store of many small runs, in the format that `qwenlab run` writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qwenlab.experiments.record import METRICS, write_table
from qwenlab.experiments.store.find import find, metrics
from qwenlab.experiments.store.store import FACTS


def fill(root: Path, runs: int) -> None:
    """Write `runs` finished runs of one experiment."""
    rng = np.random.default_rng(0)
    for number in range(runs):
        folder = root / "many" / f"{number:016x}"
        folder.mkdir(parents=True)
        facts = {
            "format": 1,
            "state": "finished",
            "experiment": "many",
            "address": f"{number:016x}",
            "parameters": {"max_tokens": int(2 ** (number % 8)), "checkpoint": ("toy-moe", "toy-dense")[number % 2]},
            "seed": number // 16,
            "checkpoints": {"checkpoint": {"source": "toy-moe", "hash": "sha256:0"}},
            "metrics": {"loss": {"units": "nat", "over": ["text"], "pairs": "text", "better": "lower"}},
            "code": {"qwenlab": "0", "source": "0", "commit": "0"},
            "began": f"2026-01-{1 + number % 28:02d}T00:00:00+00:00",
            "seconds": float(rng.uniform(1, 9)),
            "exit": {"kind": "finished", "message": ""},
            "used": {"peak_memory": 2**30},
        }
        (folder / FACTS).write_text(json.dumps(facts))
        rows = [("loss", json.dumps({"text": text}), float(rng.normal()), "nat") for text in range(4)]
        write_table(pd.DataFrame(rows, columns=["metric", "labels", "value", "units"]), folder / METRICS)


def measure(root: Path, runs: int) -> dict[str, Any]:
    """Seconds of the first query, which reads every run, and of later queries."""
    fill(root, runs)
    question = '"params.max_tokens" = 64 AND seed < 5'
    seconds = {}
    for name in ("the first question", "the same again", "one run later"):
        if name == "one run later":
            (root / "many" / f"{0:016x}" / FACTS).touch()
        began = time.perf_counter()
        runs_found = find("many", where=question, store=root)
        seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    values = metrics("many", "loss", where=question, store=root)
    seconds["metrics of the runs found"] = time.perf_counter() - began
    return {"runs": runs, "found": len(runs_found), "values": len(values), "seconds": seconds}
