"""`python -m benchmarks.sweeping`: time of a whole sweep over that of as many plain forward passes, ungraded."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

import qwenlab as ql
from benchmarks.__main__ import machine, results_file
from benchmarks.timing import quartiles

console = Console(width=120)
COUNT, HEADS = 8, 32
VARIANTS = ("sweep", "loss alone")
MEANING = f"""\
sweep: CPU seconds of `ablations.sweep`, over those of one forward pass of each batch under each intervention, and of
one pass of each batch without any; nothing is graded there. Both are of this process and of one thread, in random
order. Median of the rounds, with the quartiles. Tasks: code and prose, {COUNT} texts of 256 tokens each, and
mqar(pairs=8), {COUNT} texts. "loss alone" computes neither kl nor agreement.
processes: wall time with one process over that with some, of which the workers' start is a part."""


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-moe, toy-dense")] = None,
    rounds: int = 5,
    processes: Annotated[int, typer.Option(help="processes to compare with one; 1 for no comparison")] = 1,
    count: Annotated[int, typer.Option(help="sequences of each task for that comparison")] = 64,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure paired ratios of time, and print and write them."""
    torch.set_num_threads(1)
    file = results_file(out, "sweeping-")
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "models": {}}
    for name in models or ["toy-moe", "toy-dense"]:
        checkpoint = ql.open(name)
        measured: dict[str, Any] = {}
        for case, ablations in cases(checkpoint).items():
            measured[case] = paired(checkpoint, ablations, rounds, f"{name}, {case}")
        if processes > 1:
            measured["processes"] = spread(checkpoint, processes, count)
        results["models"][name] = measured
        show(name, measured)
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model, in case of interruption
    print(MEANING)
    console.print(f"written to {file}")


def cases(checkpoint: ql.checkpoint.Checkpoint) -> dict[str, list[ql.ablations.Ablation]]:
    """Ablations by case: every mixer, and heads that are spread evenly over the layers."""
    heads = ql.ablations.units(checkpoint, "head")
    spread = [heads[place * len(heads) // HEADS] for place in range(min(HEADS, len(heads)))]
    return {"mixers": ql.ablations.units(checkpoint), "heads": spread}


def tasks_of(checkpoint: ql.checkpoint.Checkpoint, count: int) -> list[ql.tasks.Task]:
    """Three tasks of this many sequences each."""
    texts = {name: (ql.tasks.texts(name) * count)[:count] for name in ("code", "prose")}
    found = [ql.tasks.text_task(checkpoint, some, name=name, max_tokens=256) for name, some in texts.items()]
    return [*found, ql.tasks.mqar(checkpoint, pairs=8, count=count)]


def paired(
    checkpoint: ql.checkpoint.Checkpoint, ablations: Sequence[ql.ablations.Ablation], rounds: int, case: str
) -> dict[str, Any]:
    """Ratios of CPU seconds to those of the plain passes, by variant."""
    tasks = tasks_of(checkpoint, COUNT)
    batches, model = list(ql.tasks.task_batches(checkpoint, tasks)), checkpoint.model

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            model(**batch.inputs, use_cache=False)
            for ablation in ablations:
                with ql.intervene(model, *ablation.interventions):
                    model(**batch.inputs, use_cache=False)

    def sweep(**how: Any) -> Callable[[], Any]:
        return lambda: ql.ablations.sweep(checkpoint, ablations, tasks, progress=False, **how)

    calls = {"plain": plain, "sweep": sweep(), "loss alone": sweep(scores=["loss"])}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rng = random.Random(0)
    for number in tqdm(range(rounds + 1), desc=case, unit="round"):
        for name in rng.sample(list(calls), len(calls)):
            began = time.process_time()
            calls[name]()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    of_plain = np.array(seconds.pop("plain"))
    ratios = {name: quartiles(np.array(values) / of_plain) for name, values in seconds.items()}
    return {"ablations": len(ablations), "rounds": rounds, "plain seconds, median": float(np.median(of_plain))} | ratios


def spread(checkpoint: ql.checkpoint.Checkpoint, processes: int, count: int) -> dict[str, Any]:
    """Wall seconds of one long sweep of mixers and MLPs with one process and with several, and whether they agree."""
    tasks = tasks_of(checkpoint, count)
    ablations = [*ql.ablations.units(checkpoint, "mixer"), *ql.ablations.units(checkpoint, "mlp")]
    seconds, found = [], []
    for workers in (1, processes):
        began = time.perf_counter()
        found.append(ql.ablations.sweep(checkpoint, ablations, tasks, workers=workers, progress=False))
        seconds.append(time.perf_counter() - began)
    same = found[0].drop_attrs().identical(found[1].drop_attrs())
    return {"processes": processes, "seconds": seconds, "faster": seconds[0] / seconds[1], "equal bit for bit": same}


def show(name: str, results: dict[str, Any]) -> None:
    """Print the ratios of one model."""
    table = Table("case", "ablations", "sweep", "loss alone", title=name, title_justify="left")
    for case in ("mixers", "heads"):
        row = results[case]
        ratios = ["{:.2f} [{:.2f} to {:.2f}]".format(row[each]["median"], *row[each]["quartiles"]) for each in VARIANTS]
        table.add_row(case, str(row["ablations"]), *ratios)
    console.print(table)
    if "processes" in results:
        console.print("{faster:.2f} times faster with {processes} processes".format(**results["processes"]))


if __name__ == "__main__":
    typer.run(main)
