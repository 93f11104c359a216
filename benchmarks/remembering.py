"""`python -m benchmarks.remembering`: cost of the probes of DeltaNet states and attention maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import qwenlab as ql
from benchmarks.__main__ import machine, results_file
from benchmarks.memory import extra_bytes_by_length
from benchmarks.models import GROUPS, build
from benchmarks.timing import paired, quartiles
from benchmarks.variants import MAPS, PRECISION, STATES, watching
from qwenlab.checkpoint.families import ATTENTION, DELTANET

console = Console(width=120)
CASES = {"prefill 2048": MAPS | STATES, "prefill 256": PRECISION}
LENGTHS = (2048, 4096, 16384)
WEIGHED = ("bare", "ImplicitAttention", "DeltaState")  # variants whose memory is measured
TARGET = 3.0
MEANING = f"""\
over bare: seconds of a watched forward pass over those of the same pass without a probe, alternately; 1 is free. On a
CPU, seconds of this process, of one thread.
over own mixers: the extra time of the probe, over the time of the mixers that it watches: those of the DeltaNet layers,
or of the attention layers for SoftmaxAttention. A map of DeltaNet by distance may cost {TARGET:g} times its mixers.
Median of the rounds, with the quartiles. "bare again" shows the noise of the machine.
Memory: peak of the pass in excess of the memory before the call; the cost of a probe is the difference to bare."""


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help=f"toy-moe, medium-128, {', '.join(GROUPS)}")
    ] = None,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure paired ratios of the probes of states and maps, and peak memory by text length."""
    torch.set_num_threads(1)
    chosen = models or ["toy-moe", "medium-128", *(GROUPS if torch.cuda.is_available() else [])]
    file = results_file(out, "remembering-")
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "models": {}}
    for name in chosen:
        model = build(name)
        result: dict[str, Any] = {"device": model.device.type, "heads": heads(model)}
        result["time"] = {case: timed(model, case, rounds) for case in CASES}
        del model
        result["peak bytes"] = {variant: weighed(name, variant) for variant in WEIGHED}
        results["models"][name] = result
        show(name, result)
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model, in case of interruption
    print(MEANING)
    console.print(f"written to {file}")


def heads(model: PreTrainedModel) -> dict[str, int]:
    """Numbers of layers, heads and channels."""
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
    """Variant that times the mixers; `share` has, by kind, their share of the model's time, one value per pass."""

    def __init__(self) -> None:
        self.share: dict[str, list[float]] = {DELTANET: [], ATTENTION: []}

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        with ql.watch(model, ql.probes.Timing()) as seen:
            yield
        timing = seen.recording()["timing"].sel(phase="prefill")
        mixer = timing["seconds"].sel(part="mixer")
        for kind, values in self.share.items():
            values.append(float(mixer[mixer["kind"] == kind].sum() / timing["model_seconds"]))


def timed(model: PreTrainedModel, case: str, rounds: int) -> dict[str, Any]:
    """By probe: time over that of the bare call, and extra time over that of the mixers that it watches.

    Calls with a probe alternate with bare calls, so that both run under the same load of the machine.
    """
    probes, mixers = CASES[case], Mixers()
    whole = _paired_with_bare(model, case, mixers, rounds)
    share = {kind: float(np.median(values)) for kind, values in mixers.share.items()}
    times: dict[str, Any] = {
        "rounds": rounds,
        "bare seconds, median": float(np.median(whole["bare"])),
        "mixers' share of a pass, median": share,
        "over bare": {"bare again": _over(_paired_with_bare(model, case, unwatched, rounds))},
        "over own mixers": {},
    }
    for name, probe in probes.items():
        seconds = _paired_with_bare(model, case, watching(probe), rounds)
        own = share[ATTENTION if name.startswith("SoftmaxAttention") else DELTANET]
        times["over bare"][name] = _over(seconds)
        times["over own mixers"][name] = quartiles((seconds["watched"] / seconds["bare"] - 1) / own)
    return times


def unwatched(model: PreTrainedModel) -> Any:
    """Variant without a probe."""
    return nullcontext()


def _paired_with_bare(model: PreTrainedModel, case: str, variant: Any, rounds: int) -> dict[str, np.ndarray]:
    return paired(model, case, {"bare": unwatched, "watched": variant}, rounds)


def _over(seconds: dict[str, np.ndarray]) -> dict[str, Any]:
    return quartiles(seconds["watched"] / seconds["bare"])


def weighed(name: str, variant: str) -> dict[str, int]:
    """Peak bytes in excess of those before the call, by number of tokens."""
    return dict(zip(map(str, LENGTHS), extra_bytes_by_length(name, variant, LENGTHS), strict=True))


def show(name: str, result: dict[str, Any]) -> None:
    """Print the ratios and the peaks of one model."""
    for case, times in result["time"].items():
        table = Table("probe", "over bare", "over own mixers", title=f"{name}, {case} tokens", title_justify="left")
        for probe, ratio in times["over bare"].items():
            own = times["over own mixers"].get(probe)
            table.add_row(probe, _formatted(ratio), "" if own is None else _formatted(own))
        console.print(table)
        for probe, own in times["over own mixers"].items():
            if probe.startswith("ImplicitAttention"):
                status = "within" if own["median"] <= TARGET else "BEYOND"
                console.print(f"{probe}: {own['median']:.2f} times its layers' mixers, {status} the {TARGET:g} allowed")
    table = Table("peak, MiB", *(f"{n:,} tokens" for n in LENGTHS), title=f"{name}, memory", title_justify="left")
    for variant, peaks in result["peak bytes"].items():
        table.add_row(variant, *(f"{peak / 2**20:,.0f}" for peak in peaks.values()))
    console.print(table)


def _formatted(ratio: dict[str, Any]) -> str:
    return "{:.2f} [{:.2f} to {:.2f}]".format(ratio["median"], *ratio["quartiles"])


if __name__ == "__main__":
    typer.run(main)
