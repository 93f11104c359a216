"""`python -m benchmarks.remembering`: the cost of asking DeltaNet layers what they hold, how far they reach."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import qwenlab as ql
from benchmarks.__main__ import machine
from benchmarks.memory import extra_bytes_by_length
from benchmarks.models import GROUPS, build
from benchmarks.timing import paired, quartiles
from benchmarks.variants import MAPS, PRECISION, STATES, watching
from qwenlab.checkpoint.families import ATTENTION, DELTANET

console = Console(width=120)
CASES = {"prefill 2048": MAPS | STATES, "prefill 256": PRECISION}
LENGTHS = (2048, 4096, 16384)
WEIGHED = ("bare", "ImplicitAttention", "DeltaState")  # their memory
TARGET = 3.0
MEANING = f"""\
over bare: seconds of a watched forward pass over those of the same pass unwatched, in turns; 1 is free. On a CPU
seconds of this process, of one thread.
over own mixers: what the probe adds, over what the mixers it watches take of a pass: those of the DeltaNet layers, of
SoftmaxAttention those of the attention layers. A map of DeltaNet by distance may cost {TARGET:g} times its mixers.
Median of the rounds, with the quartiles. "bare again" is how far from 1 the machine alone brings a ratio.
Memory: the peak above what was held before the call, the pass itself included; what a probe adds is the difference
to bare."""


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help=f"toy-moe, medium-128, {', '.join(GROUPS)}")
    ] = None,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Paired ratios of the probes of states and maps, and peak memory by the length of the text."""
    torch.set_num_threads(1)
    chosen = models or ["toy-moe", "medium-128", *(GROUPS if torch.cuda.is_available() else [])]
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"remembering-{kind}-{datetime.now(UTC):%Y-%m-%d}.json"
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "models": {}}
    for name in chosen:
        model = build(name)
        found: dict[str, Any] = {"device": model.device.type, "heads": heads(model)}
        found["time"] = {case: timed(model, case, rounds) for case in CASES}
        del model
        found["peak bytes"] = {variant: weighed(name, variant) for variant in WEIGHED}
        results["models"][name] = found
        show(name, found)
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model: interrupted, it keeps what it has
    print(MEANING)
    console.print(f"written to {file}")


def heads(model: PreTrainedModel) -> dict[str, int]:
    """How many heads of how many channels, and in how many layers."""
    config = model.config
    return {
        "DeltaNet layers": config.layer_types.count(DELTANET),
        "key heads": config.linear_num_key_heads,
        "value heads": config.linear_num_value_heads,
        "channels": config.linear_value_head_dim,
        "attention layers": config.layer_types.count(ATTENTION),
        "attention heads": config.num_attention_heads,
    }


class Mixers:
    """A variant: a pass whose mixers are timed. `share` has one value a pass, of each kind: of the whole decoder."""

    def __init__(self) -> None:
        self.share: dict[str, list[float]] = {DELTANET: [], ATTENTION: []}

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        with ql.watch(model, ql.probes.Timing()) as seen:
            yield
        found = seen.recording()["timing"].sel(phase="prefill")
        mixer = found["seconds"].sel(part="mixer")
        for kind, values in self.share.items():
            values.append(float(mixer[mixer["kind"] == kind].sum() / found["model_seconds"]))


def timed(model: PreTrainedModel, case: str, rounds: int) -> dict[str, Any]:
    """By probe: time over the bare call, and what it adds over the time of the mixers that it watches.

    Each probe takes turns with a bare call of its own, a moment apart, so that both meet the machine as busy.
    """
    probes, mixers = CASES[case], Mixers()
    whole = _beside_bare(model, case, mixers, rounds)
    share = {kind: float(np.median(values)) for kind, values in mixers.share.items()}
    found: dict[str, Any] = {
        "rounds": rounds,
        "bare seconds, median": float(np.median(whole["bare"])),
        "mixers' share of a pass, median": share,
        "over bare": {"bare again": _over(_beside_bare(model, case, unwatched, rounds))},
        "over own mixers": {},
    }
    for name, probe in probes.items():
        seconds = _beside_bare(model, case, watching(probe), rounds)
        own = share[ATTENTION if name.startswith("SoftmaxAttention") else DELTANET]
        found["over bare"][name] = _over(seconds)
        found["over own mixers"][name] = quartiles((seconds["watched"] / seconds["bare"] - 1) / own)
    return found


def unwatched(model: PreTrainedModel) -> Any:
    """Nothing around the call."""
    return nullcontext()


def _beside_bare(model: PreTrainedModel, case: str, around: Any, rounds: int) -> dict[str, np.ndarray]:
    return paired(model, case, {"bare": unwatched, "watched": around}, rounds)


def _over(seconds: dict[str, np.ndarray]) -> dict[str, Any]:
    return quartiles(seconds["watched"] / seconds["bare"])


def weighed(name: str, variant: str) -> dict[str, int]:
    """Peak bytes above those before the call, by tokens of the text."""
    return {str(n): each for n, each in zip(LENGTHS, extra_bytes_by_length(name, variant, LENGTHS), strict=True)}


def show(name: str, found: dict[str, Any]) -> None:
    """The ratios and the peaks of one model."""
    for case, times in found["time"].items():
        table = Table("probe", "over bare", "over own mixers", title=f"{name}, {case} tokens", title_justify="left")
        for probe, ratio in times["over bare"].items():
            own = times["over own mixers"].get(probe)
            table.add_row(probe, _said(ratio), "" if own is None else _said(own))
        console.print(table)
        for probe, own in times["over own mixers"].items():
            if probe.startswith("ImplicitAttention"):
                verdict = "within" if own["median"] <= TARGET else "BEYOND"
                console.print(
                    f"{probe}: {own['median']:.2f} times its layers' mixers, {verdict} the {TARGET:g} allowed"
                )
    table = Table("peak, MiB", *(f"{n:,} tokens" for n in LENGTHS), title=f"{name}, memory", title_justify="left")
    for variant, peaks in found["peak bytes"].items():
        table.add_row(variant, *(f"{each / 2**20:,.0f}" for each in peaks.values()))
    console.print(table)


def _said(ratio: dict[str, Any]) -> str:
    return "{:.2f} [{:.2f} to {:.2f}]".format(ratio["median"], *ratio["quartiles"])


if __name__ == "__main__":
    typer.run(main)
