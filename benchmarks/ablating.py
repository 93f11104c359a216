"""`python -m benchmarks.ablating`: what a sweep and a patching save by not running the layers below an edit again."""

from __future__ import annotations

import importlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
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
from benchmarks.__main__ import machine
from benchmarks.models import MEDIUM
from benchmarks.timing import quartiles
from qwenlab.ablations.prefix import given_back
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.testing.checkpoints import tiny_checkpoint

console = Console(width=120)
ROOMS = tuple(importlib.import_module(f"qwenlab.ablations.{name}") for name in ("sweep", "patching"))
TEXTS, TOKENS = 2, 64
MEANING = f"""\
layers run: of the passes under edits, layers that ran over those of as many whole passes; counted, not timed.
time: seconds of the whole call (the unedited pass, grading and entering each edit included) over those of the same call
in which every layer runs under every edit, in turns; 1 saves nothing. CPU seconds of this process, of one thread.
Median of the rounds, with the quartiles. "mixer 0 alone" has nothing below it to save: how far that is from 1 is what
keeping the outputs costs, and what the machine alone does to a ratio.
bytes held: what all layers returned for one batch of {TEXTS} texts of {TOKENS} tokens."""


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-moe, medium")] = None,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Layers run and paired ratios of time, by what is ablated."""
    torch.set_num_threads(1)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"ablating-{kind}-{datetime.now(UTC):%Y-%m-%d}.json"
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "models": {}}
    for name in models or ["toy-moe", "medium"]:
        with tempfile.TemporaryDirectory() as folder:
            results["models"][name] = measured(opened(name, folder), rounds)
        show(name, results["models"][name])
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model: interrupted, it keeps what it has
    print(MEANING)
    console.print(f"written to {file}")


def opened(name: str, folder: str) -> ql.checkpoint.Checkpoint:
    """A shipped toy, or the medium random model, written to a folder."""
    if name == "medium":
        return ql.open(tiny_checkpoint(folder, "qwen3_5_moe", layers=12, mtp=None, **MEDIUM))
    return ql.open(name)


def measured(checkpoint: ql.checkpoint.Checkpoint, rounds: int) -> dict[str, Any]:
    """By case: edited passes, the share of layers that ran, and the ratios of time."""
    decoder, found = decoder_of(checkpoint.model), {}
    for case, call in calls(checkpoint).items():
        with counting() as skipped:
            call()
        passes, layers = len(skipped), len(decoder.layers)
        seconds = paired(call, {"every": every_layer, "saved": nullcontext}, rounds, case)
        found[case] = {
            "edited passes": passes,
            "layers run": 1 - sum(skipped) / (passes * layers),
            "rounds": rounds,
            "every layer's seconds, median": float(np.median(seconds["every"])),
            "time": quartiles(seconds["saved"] / seconds["every"]),
        }
    return {"layers": len(decoder.layers), "bytes held": held(checkpoint), "cases": found}


def calls(checkpoint: ql.checkpoint.Checkpoint) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
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


def paired(call: Callable[[], Any], around: Mapping[str, Any], rounds: int, case: str) -> dict[str, np.ndarray]:
    """CPU seconds of each round [round] by variant, in random order, after the call that counted and warmed up."""
    seconds: dict[str, list[float]] = {name: [] for name in around}
    rng = random.Random(0)
    for _ in tqdm(range(rounds), desc=case, unit="round"):
        for name in rng.sample(list(around), len(around)):
            with around[name]():
                began = _now()
                call()
                seconds[name].append(_now() - began)
    return {name: np.array(values) for name, values in seconds.items()}


@contextmanager
def every_layer() -> Iterator[None]:
    """In the block no layer's output is kept, and all layers run under every edit."""
    with _instead(outputs_of_layers=lambda decoder: nullcontext({}), given_back=lambda *of: nullcontext(0)):
        yield


@contextmanager
def counting() -> Iterator[list[int]]:
    """How many layers did not run, of every pass under an edit."""
    found: list[int] = []

    @contextmanager
    def counted(*of: Any) -> Iterator[int]:
        with given_back(*of) as skipped:
            found.append(skipped)
            yield skipped

    with _instead(given_back=counted):
        yield found


@contextmanager
def _instead(**functions: Callable[..., Any]) -> Iterator[None]:
    with mock.patch.multiple(ROOMS[0], **functions), mock.patch.multiple(ROOMS[1], **functions):
        yield


def held(checkpoint: ql.checkpoint.Checkpoint) -> int:
    """Bytes of what all layers return for one batch."""
    with torch.no_grad(), ROOMS[0].outputs_of_layers(decoder_of(checkpoint.model)) as layers:
        checkpoint.model(tokens(checkpoint), use_cache=False)
    return sum((each[0] if isinstance(each, tuple) else each).nbytes for each in layers.values())


def tokens(checkpoint: ql.checkpoint.Checkpoint) -> torch.Tensor:
    """int [TEXTS, TOKENS]: drawn from a seed."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, checkpoint.model.config.vocab_size, (TEXTS, TOKENS), generator=generator)
    return drawn.to(checkpoint.model.device)


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def show(name: str, found: dict[str, Any]) -> None:
    """The saving of one model, case by case."""
    title = f"{name}: {found['layers']} layers, {found['bytes held'] / 2**20:.2f} MiB held"
    table = Table("case", "edited passes", "layers run", "time", title=title, title_justify="left")
    for case, each in found["cases"].items():
        ratio = "{:.2f} [{:.2f} to {:.2f}]".format(each["time"]["median"], *each["time"]["quartiles"])
        table.add_row(case, str(each["edited passes"]), f"{each['layers run']:.3f}", ratio)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
