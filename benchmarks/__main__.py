"""`make bench`: print what watching costs, and write it to benchmarks/results with the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.memory import extra_bytes
from benchmarks.models import build
from benchmarks.timing import CASES, measure
from qwenlab.experiments.sweep.provenance import processor

console = Console(width=120)


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-moe, medium, 35B-A3B")] = None,
    rounds: int = 9,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Paired ratios to the bare call by model and case, and peak memory."""
    torch.set_num_threads(1)
    chosen = models or ["toy-moe", "medium", *(["35B-A3B"] if torch.cuda.is_available() else [])]
    results: dict[str, Any] = {"machine": machine(), "time": {}, "memory": {}}
    out.mkdir(parents=True, exist_ok=True)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    file = out / f"{kind}-{datetime.now(UTC):%Y-%m-%d}.json"
    for name in chosen:
        model = build(name)
        results["time"][name] = {case: measure(model, case, _rounds(case, rounds)) for case in CASES}
        show_times(name, results["time"][name])
        del model
        results["memory"][name] = memory(name)
        show_memory(name, results["memory"][name])
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model: interrupted, it keeps what it has
    console.print(f"written to {file}")


def _rounds(case: str, rounds: int) -> int:
    """Long cases get fewer rounds."""
    return max(3, rounds // 2) if "4096" in case else rounds


def memory(name: str) -> dict[str, Any]:
    """Peak bytes above those before the call, at 2,048 tokens; and of the default probes as more texts are read."""
    names = ("bare", "default probes", "thorough probes", "cache every activation")
    return {
        "one text of 2,048 tokens": {variant: extra_bytes(name, variant, 2048) for variant in names},
        "default probes by number of texts of 512 tokens": {
            str(texts): extra_bytes(name, "default probes", 512, texts) for texts in (1, 4, 16, 32)
        },
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    packages = {}
    for package in ("torch", "transformers", "triton", "flash-linear-attention", "innards", "qwenlab"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch threads": torch.get_num_threads(),
        "allocator, while timing": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "packages": packages,
    }


def show_times(name: str, cases: dict[str, Any]) -> None:
    """A table of ratios to the bare call."""
    table = Table(title=f"{name}: time over the bare call, median of paired rounds [quartiles]")
    for column in ("variant", *cases):
        table.add_column(column)
    for variant in dict.fromkeys(variant for case in cases.values() for variant in case["ratios"]):
        cells = []
        for case in cases.values():
            ratio = case["ratios"].get(variant)
            cells.append(
                ""
                if ratio is None
                else f"{ratio['median']:.3f} [{ratio['quartiles'][0]:.2f}-{ratio['quartiles'][1]:.2f}]"
            )
        table.add_row(variant, *cells)
    console.print(table)


def show_memory(name: str, found: dict[str, dict[str, int]]) -> None:
    """Peak memory above that before the call."""
    for title, values in found.items():
        shown = "  ".join(f"{variant}: {value / 2**20:.0f} MiB" for variant, value in values.items())
        console.print(f"{name}, {title}: {shown}")


if __name__ == "__main__":
    typer.run(main)
