"""`python -m benchmarks.ablating`: time saved by not rerunning the layers below an intervention."""

from __future__ import annotations

import importlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

import qwenlab as ql
from benchmarks.__main__ import machine, results_file
from benchmarks.models import MEDIUM
from benchmarks.timing import quartiles
from qwenlab.ablations.prefix import record_prefix, reuse_prefix
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.testing.checkpoints import tiny_checkpoint

console = Console(width=120)
MODULES = tuple(importlib.import_module(f"qwenlab.ablations.{name}") for name in ("scoring", "patching"))
TEXTS, TOKENS = 2, 64
MEANING = f"""\
layers run: layers that ran in the passes under interventions, over those of full passes; counted, not timed.
time: seconds of the call (with the pass without interventions, grading, and entering each intervention) over those of
the same call in which every layer runs under every intervention; 1 saves nothing. CPU seconds of this process, of one
thread. Median of the rounds, with the quartiles. "mixer 0 alone" has no layer below it: it saves its own mixer.
bytes held: the values of all layers for one batch of {TEXTS} texts of {TOKENS} tokens; at most 256 MiB are kept."""


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-moe, medium")] = None,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure the layers run and paired ratios of time, by ablated part."""
    torch.set_num_threads(1)
    file = results_file(out, "ablating-")
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "models": {}}
    for name in models or ["toy-moe", "medium"]:
        with tempfile.TemporaryDirectory() as folder:
            results["models"][name] = measured(opened(name, folder), rounds)
        show(name, results["models"][name])
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model, in case of interruption
    print(MEANING)
    console.print(f"written to {file}")


def opened(name: str, folder: str) -> ql.checkpoint.Checkpoint:
    """A shipped toy, or the medium random model, written to a folder."""
    if name == "medium":
        return ql.open(tiny_checkpoint(folder, "qwen3_5_moe", layers=12, mtp=None, **MEDIUM))
    return ql.open(name)


def measured(checkpoint: ql.checkpoint.Checkpoint, rounds: int) -> dict[str, Any]:
    """By case: passes under interventions, the share of layers that ran, and the ratios of time."""
    decoder, cases = decoder_of(checkpoint.model), {}
    for case, call in calls(checkpoint).items():
        with counting() as skipped:
            call()
        passes, layers = len(skipped), len(decoder.layers)
        seconds = paired(call, {"every": every_layer, "saved": nullcontext}, rounds, case)
        cases[case] = {
            "edited passes": passes,
            "layers run": 1 - sum(skipped) / (passes * layers),
            "rounds": rounds,
            "every layer's seconds, median": float(np.median(seconds["every"])),
            "time": quartiles(seconds["saved"] / seconds["every"]),
        }
    return {"layers": len(decoder.layers), "bytes held": output_bytes(checkpoint), "cases": cases}


def calls(checkpoint: ql.checkpoint.Checkpoint) -> dict[str, Callable[[], Any]]:
    """The calls to time, by name."""
    mixers, half = ql.ablations.units(checkpoint), len(decoder_of(checkpoint.model).layers) // 2
    rows = tokens(checkpoint).tolist()
    other = [[*row[: TOKENS // 2], row[TOKENS // 2] - 1, *row[TOKENS // 2 + 1 :]] for row in rows]
    task = ql.tasks.Task("drawn", tuple(map(tuple, rows)), (tuple(range(1, TOKENS)),) * TEXTS)

    def sweep(ablations: list[ql.ablations.Ablation]) -> Callable[[], Any]:
        return lambda: ql.ablations.sweep(checkpoint, ablations, [task], batch_size=TEXTS, progress=False)

    def patch() -> Any:
        return ql.ablations.patching(checkpoint, rows, other, [1] * TEXTS, positions=[TOKENS // 2], progress=False)

    return {
        "mixer 0 alone": sweep(mixers[:1]),
        "every mixer": sweep(mixers),
        "mixers of the upper half": sweep(mixers[half:]),
        "patching every residual, one position": patch,
    }


def paired(call: Callable[[], Any], variants: Mapping[str, Any], rounds: int, case: str) -> dict[str, np.ndarray]:
    """CPU seconds [round] by variant, in random order; an earlier call has warmed up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rng = random.Random(0)
    for _ in tqdm(range(rounds), desc=case, unit="round"):
        for name in rng.sample(list(variants), len(variants)):
            with variants[name]():
                began = _now()
                call()
                seconds[name].append(_now() - began)
    return {name: np.array(values) for name, values in seconds.items()}


@contextmanager
def every_layer() -> Iterator[None]:
    """Context manager: store no outputs, and run all layers under every intervention."""
    with _patched(record_prefix=lambda decoder: nullcontext(), reuse_prefix=lambda *of: nullcontext(0)):
        yield


@contextmanager
def counting() -> Iterator[list[int]]:
    """Context manager: the number of skipped layers of every pass under an intervention."""
    skipped_layers: list[int] = []

    @contextmanager
    def counted(*of: Any) -> Iterator[int]:
        with reuse_prefix(*of) as skipped:
            skipped_layers.append(skipped)
            yield skipped

    with _patched(reuse_prefix=counted):
        yield skipped_layers


@contextmanager
def _patched(**functions: Callable[..., Any]) -> Iterator[None]:
    with mock.patch.multiple(MODULES[0], **functions), mock.patch.multiple(MODULES[1], **functions):
        yield


def output_bytes(checkpoint: ql.checkpoint.Checkpoint) -> int:
    """Bytes of what all layers compute for one batch and a sweep may keep."""
    decoder = decoder_of(checkpoint.model)
    with torch.no_grad():
        with record_prefix(decoder) as prefix:
            checkpoint.model(tokens(checkpoint), use_cache=False)
        return sum(prefix.at(layer).nbytes for layer in range(len(decoder.layers)))


def tokens(checkpoint: ql.checkpoint.Checkpoint) -> torch.Tensor:
    """Random tokens with a fixed seed, int [TEXTS, TOKENS]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, checkpoint.model.config.vocab_size, (TEXTS, TOKENS), generator=generator)
    return drawn.to(checkpoint.model.device)


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def show(name: str, results: dict[str, Any]) -> None:
    """Print the savings of one model by case."""
    title = f"{name}: {results['layers']} layers, {results['bytes held'] / 2**20:.2f} MiB of values"
    table = Table("case", "edited passes", "layers run", "time", title=title, title_justify="left")
    for case, row in results["cases"].items():
        ratio = "{:.2f} [{:.2f} to {:.2f}]".format(row["time"]["median"], *row["time"]["quartiles"])
        table.add_row(case, str(row["edited passes"]), f"{row['layers run']:.3f}", ratio)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
