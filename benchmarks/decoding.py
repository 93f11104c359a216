"""`python -m benchmarks.decoding`: cost of drafting, rolling back and tracing, as ratios of paired runs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import qwenlab as ql
from benchmarks.__main__ import machine, results_file
from benchmarks.models import build
from benchmarks.timing import quartiles
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.speculative.decoding_loop import Decoding, Settings
from qwenlab.speculative.policies import FixedDepth
from qwenlab.speculative.rollback import ReplayRollback
from qwenlab.speculative.step_times import step_times
from qwenlab.speculative.verification import Greedy, Verification
from qwenlab.testing.models import tiny_head

console = Console(width=120)
DEPTHS = (1, 2, 3, 4, 8)
PROMPT, NEW = 64, 96


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="toy-dense, toy-moe, or a folder")] = None,
    rounds: int = 7,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure decoding with drafts over plain `generate`, replay over rerun, trace over online decoding, and costs."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "prompt tokens": PROMPT, "new tokens": NEW, "models": {}}
    file = results_file(out, "decoding-")
    for name in models or ["toy-dense", "toy-moe"]:
        checkpoint = ql.open(name, device="cuda" if torch.cuda.is_available() else None)
        found = {"decoding": decoding(checkpoint, rounds), "costs": costs(checkpoint), "trace": tracing(checkpoint)}
        results["models"][name] = found
        show(name, found)
        file.write_text(json.dumps(results, indent=1) + "\n")  # after each model, in case of interruption
    for name in ["medium", *(["35B-A3B"] if torch.cuda.is_available() else [])]:
        results["models"][name] = {"scripted acceptance": scripted(name, rounds)}
        file.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {file}")


def decoding(checkpoint: Checkpoint, rounds: int) -> dict[str, Any]:
    """Tokens per second over those of plain greedy `generate`, with one prompt per round; median and quartiles."""
    texts = [checkpoint.tokenizer(text)["input_ids"][:PROMPT] for text in ql.tasks.texts("code", rounds + 1)]
    ways: dict[str, Callable[[list[int]], int]] = {"generate": lambda prompt: plain(checkpoint, prompt)}
    for depth in DEPTHS:
        ways[f"depth {depth}"] = drafted(checkpoint, depth, ql.speculative.ReplayRollback)
    ways["depth 4, snapshot-and-rerun"] = drafted(checkpoint, 4, ql.speculative.RerunRollback)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    rng = random.Random(0)
    for number, prompt in enumerate(tqdm(texts, desc="decoding", unit="round")):
        for name in rng.sample(list(ways), len(ways)):
            began = _now(checkpoint.model)
            new = ways[name](prompt)
            if number:  # the first round warms up
                speeds[name].append(new / (_now(checkpoint.model) - began))
    base = np.array(speeds["generate"])
    return {
        "generate, tokens per second, median": float(np.median(base)),
        "ratios": {name: quartiles(np.array(values) / base) for name, values in speeds.items()},
    }


def plain(checkpoint: Checkpoint, prompt: list[int]) -> int:
    """Number of new tokens of transformers' greedy decoding."""
    inputs = torch.tensor([prompt], device=checkpoint.model.device)
    return int(checkpoint.model.generate(inputs, max_new_tokens=NEW, do_sample=False).shape[1]) - len(prompt)


def drafted(checkpoint: Checkpoint, depth: int, rollback: type[ql.speculative.Rollback]) -> Callable[[list[int]], int]:
    """Function that decodes with drafts and returns the number of new tokens."""

    def run(prompt: list[int]) -> int:
        how = dict(depth=depth, max_new_tokens=NEW, rollback=rollback, progress=False)
        return int(ql.speculative.generate(checkpoint, prompt, **how).new_tokens)

    return run


def costs(checkpoint: Checkpoint) -> dict[str, Any]:
    """Step times in units of a plain step, for both rollbacks, and the overhead as a share of a round of 8 drafts."""
    text, ratios = "\n".join(ql.tasks.texts("code", 4)), {}
    for rollback in (ql.speculative.ReplayRollback, ql.speculative.RerunRollback):
        measured = step_times(checkpoint, text, depth=8, rollback=rollback, progress=False)
        step = float(measured["plain_step"])
        verify = measured["verify_step"].values
        whole = 8 * float(measured["draft_step"]) + float(verify[-1]) + float(measured["rollback"])
        ratios[rollback.name] = {
            "plain step, seconds": step,
            "draft step / plain step": float(measured["draft_step"]) / step,
            "verify step / plain step, by width": {str(w + 1): float(v) / step for w, v in enumerate(verify)},
            "rollback / plain step": float(measured["rollback"]) / step,
            "overhead / round of 8 drafts": float(measured["overhead"]) / (whole + float(measured["overhead"])),
        }
    replay, rerun = (times["rollback / plain step"] for times in ratios.values())
    return {**ratios, "rollback, replay / snapshot-and-rerun": replay / rerun}


def tracing(checkpoint: Checkpoint, depth: int = 3, rounds: int = 3) -> dict[str, Any]:
    """Tokens per second of tracing a text over those of online decoding, alternately."""
    text = checkpoint.tokenizer("\n".join(ql.tasks.texts("code", 8)))["input_ids"][: 8 * 512]
    ratios, speeds = [], []
    for _ in range(rounds):
        began = _now(checkpoint.model)
        ql.speculative.trace(checkpoint, [text], depth=depth, window=512, progress=False)
        speeds.append(len(text) / (_now(checkpoint.model) - began))
        began = _now(checkpoint.model)
        new = drafted(checkpoint, depth, ql.speculative.ReplayRollback)(text[:PROMPT])
        ratios.append(speeds[-1] / (new / (_now(checkpoint.model) - began)))
    return {
        "depth": depth,
        "trace, tokens per second, median": float(np.median(speeds)),
        "trace / online": quartiles(np.array(ratios)),
    }


class Scripted(Greedy):
    """Accepts each draft with a fixed probability, so that random weights cost as much as trained ones."""

    name = "scripted"

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def verify(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        """Accept up to the first draft that fails."""
        passes = torch.rand(len(drafts), generator=generator, device=generator.device) < self.rate
        accepted = int(passes.long().cumprod(dim=0).sum())
        return Verification(accepted, int(scores[accepted].argmax()))


def scripted(name: str, rounds: int, depths: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    """Tokens per second over those without drafts, by depth and by acceptance probability."""
    model = build(name)
    head = tiny_head(model)
    text = torch.randint(3, model.config.vocab_size, (512,), generator=torch.Generator().manual_seed(0))
    ways = {"plain": (1, 0.0, FixedDepth(0))}
    ways |= {f"depth {depth}, {rate:.0%}": (depth, rate, None) for depth in depths for rate in (0.5, 0.7, 0.9)}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    rng = random.Random(0)
    for number in tqdm(range(rounds + 1), desc=f"{name}, scripted acceptance", unit="round"):
        for way in rng.sample(list(ways), len(ways)):
            depth, rate, policy = ways[way]
            settings, prompt = Settings(depth, Scripted(rate), policy), text.to(model.device)
            decoding = Decoding(head, prompt, settings, ReplayRollback, max_new_tokens=NEW, seed=number)
            decoding.start()
            began = _now(model)
            while not decoding.ended:
                decoding.step()
            if number:
                speeds[way].append((NEW - 1) / (_now(model) - began))
    plain = np.array(speeds["plain"])
    return {way: quartiles(np.array(values) / plain) for way, values in speeds.items()}


def show(name: str, results: dict[str, Any]) -> None:
    """Print the ratios of one model."""
    table = Table("way", "over plain generate", "quartiles", title=f"{name}: tokens per second", title_justify="left")
    for way, ratio in results["decoding"]["ratios"].items():
        table.add_row(way, f"{ratio['median']:.2f}", "{:.2f} to {:.2f}".format(*ratio["quartiles"]))
    console.print(table)
    replay = results["costs"]["replay"]
    loop = replay["overhead / round of 8 drafts"]
    rollback = results["costs"]["rollback, replay / snapshot-and-rerun"]
    console.print(
        f"draft step {replay['draft step / plain step']:.2f} plain steps; loop {loop:.1%} of a round; replay "
        f"{rollback:.2f} of a snapshot-and-rerun; trace {results['trace']['trace / online']['median']:.0f} times online"
    )


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
