"""`make bench`: measure the cost of watching, print it, and write it with the machine to benchmarks/results."""

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
from benchmarks.shares import decode_shares
from benchmarks.timing import CASES, fixed_costs, measure
from qwenlab.experiments.sweep.provenance import processor

console = Console(width=120)


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-moe, tiny, medium, 35B-A3B")] = None,
    cases: Annotated[list[str] | None, typer.Option("--case", help=", ".join(CASES))] = None,
    rounds: int = 9,
    memory: bool = True,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure paired ratios to the bare call by model and case, fixed costs, where decode steps go, and peak memory."""
    torch.set_num_threads(1)
    chosen = models or ["toy-moe", "tiny", "medium", *(["35B-A3B"] if torch.cuda.is_available() else [])]
    results: dict[str, Any] = {"machine": machine(), "time": {}, "fixed costs": {}, "decode steps": {}, "memory": {}}
    file = results_file(out)
    for name in chosen:
        model = build(name)
        results["time"][name] = {case: measure(model, case, _rounds(case, rounds)) for case in cases or CASES}
        show_times(name, results["time"][name])
        results["fixed costs"][name] = fixed_costs(model, rounds)
        results["decode steps"][name] = decode_shares(model)
        show_costs(name, results["fixed costs"][name], results["decode steps"][name])
        del model
        if memory:
            results["memory"][name] = peaks(name)
            show_memory(name, results["memory"][name])
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model, in case of interruption
    console.print(f"written to {file}")


def results_file(out: Path, name: str = "") -> Path:
    """The file for the results of today on this kind of device; creates its folder."""
    out.mkdir(parents=True, exist_ok=True)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    return out / f"{name}{kind}-{datetime.now(UTC):%Y-%m-%d}.json"


def _rounds(case: str, rounds: int) -> int:
    """Fewer rounds for long cases."""
    return max(3, rounds // 2) if "4096" in case else rounds


def peaks(name: str) -> dict[str, Any]:
    """Peak bytes in excess of those before the call, at 2,048 tokens, and for the default probes by number of texts."""
    names = ("bare", "default probes", "thorough probes", "cache every activation")
    return {
        "one text of 2,048 tokens": {variant: extra_bytes(name, variant, 2048) for variant in names},
        "default probes by number of texts of 512 tokens": {
            str(texts): extra_bytes(name, "default probes", 512, texts) for texts in (1, 4, 16, 32)
        },
    }


def machine() -> dict[str, Any]:
    """The hardware and software of this machine."""
    packages = {}
    for package in ("torch", "transformers", "triton", "flash-linear-attention", "innards", "nnsight", "qwenlab"):
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
    """Print a table of ratios to the bare call."""
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


def show_costs(name: str, fixed: dict[str, Any], steps: dict[str, Any]) -> None:
    """Print what a block costs once, and where the time of its decode steps goes."""
    milliseconds = "  ".join(f"{part}: {value['median']:.2f}" for part, value in fixed["milliseconds"].items())
    console.print(f"{name}, {fixed['layers']} layers, {fixed['tokens']} tokens, milliseconds: {milliseconds}")
    shares = "  ".join(f"{group}: {share:.1%}" for group, share in steps["shares"].items())
    console.print(
        f"{name}, {steps['wrapped calls per step']:.0f} wrapped calls a decode step, with a profiler: {shares}"
    )


def show_memory(name: str, peaks: dict[str, dict[str, int]]) -> None:
    """Print the peak memory in excess of that before the call."""
    for title, values in peaks.items():
        shown = "  ".join(f"{variant}: {value / 2**20:.0f} MiB" for variant, value in values.items())
        console.print(f"{name}, {title}: {shown}")


if __name__ == "__main__":
    typer.run(main)
