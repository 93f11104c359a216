"""Small experiments, and runs in the form that `qwenlab run` writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from qwenlab.execution.engine import release
from qwenlab.experiments.record import METRICS, write_table
from qwenlab.experiments.store.store import FACTS

NOTEBOOK = """\
# %% tags=["parameters"]
x: int = 1
mode: str = "well"
seed: int = 0

# %%
import os, sys, time, pathlib
import numpy as np
import qwenlab as ql

# %%
ql.experiments.record(loss=float(np.random.rand()) + x)

# %%
match mode:
    case "raise":
        raise ValueError("boom")
    case "die":
        os._exit(3)
    case "slow":
        time.sleep(60)
    case "once":
        mark = pathlib.Path("tried")
        if not mark.exists():
            mark.touch()
            raise ValueError("the first time")
"""
SPEC: dict[str, Any] = {
    "question": "Does it run?",
    "notebook": "small.py",
    "metrics": {"loss": {"units": "nat", "better": "lower"}},
}


@pytest.fixture(scope="session", autouse=True)
def _no_kernel_is_left():
    yield
    release()


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment `small`, its spec changed by the keywords, and return its folder."""

    def write(cells: str = NOTEBOOK, **changes: Any) -> Path:
        folder = tmp_path / "experiments" / "small"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.py").write_text(cells)
        spec = {key: value for key, value in (SPEC | changes).items() if value is not None}
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        return folder

    return write


Rows = list[tuple[str, dict[str, Any], float, str]]


def written(root: Path, number: int, metrics: Rows, *, experiment: str = "small", **changes: Any) -> str:
    """Write a run to a store, and return its name. Keywords replace facts."""
    address = f"{number:016x}"
    facts = {
        "format": 1,
        "state": "finished",
        "experiment": experiment,
        "address": address,
        "question": "Does it run?",
        "notebook": "small.py",
        "parameters": {"x": number},
        "seed": 0,
        "checkpoints": {},
        "metrics": {
            name: {
                "units": units,
                "over": list(labels),
                "pairs": next(iter(labels), None),
                "better": "lower",
                "meaning": "",
            }
            for name, labels, _, units in metrics
        },
        "attempt": 1,
        "code": {"qwenlab": "0.1.0", "source": "s", "commit": "c"},
        "machine": {"host": "here"},
        "versions": {"torch": "2"},
        "began": f"2026-01-01T00:00:{number % 60:02d}+00:00",
        "seconds": 1.5,
        "exit": {"kind": "finished", "message": ""},
        "used": {"peak_memory": 2**20},
    } | changes
    state = facts["state"]
    folder = root / experiment / (address if state == "finished" else f"{address}.1")
    folder.mkdir(parents=True)
    (folder / FACTS).write_text(json.dumps(facts))
    if metrics:
        rows = [(name, json.dumps(labels, sort_keys=True), value, units) for name, labels, value, units in metrics]
        write_table(pd.DataFrame(rows, columns=["metric", "labels", "value", "units"]), folder / METRICS)
    return f"{experiment}/{address}"
