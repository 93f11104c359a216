"""Paired timing: each round runs all variants in random order and compares them with its bare call."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.variants import default_probes, inside, variants

CASES = ("prefill 256", "prefill 512", "prefill 4096", "decode 64", "generate 512 + 1", "generate 512 + 64")


def measure(model: PreTrainedModel, case: str, rounds: int) -> dict[str, Any]:
    """Median and quartiles of the per-round ratio to the bare call, by variant."""
    seconds = paired(model, case, variants(case), rounds)
    bare = seconds["bare"]
    ratios = {name: quartiles(values / bare) for name, values in seconds.items()}
    return {"bare seconds, median": float(np.median(bare)), "rounds": rounds, "ratios": ratios}


def paired(model: PreTrainedModel, case: str, contexts: Mapping[str, Any], rounds: int) -> dict[str, np.ndarray]:
    """Seconds [round] by variant, after a bare call and a short call of every variant that warm up.

    Python's garbage collector skips what exists by then: a scan of all imported modules takes longer than a decode step
    and would count against the variant that happens to trigger it.
    """
    kind, *rest = case.split()
    run, sizes = CALLS[kind], [int(word) for word in rest if word.isdigit()]
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    rng = random.Random(0)
    with torch.no_grad():
        run(model, contexts["bare"], *sizes)
        for context in contexts.values():
            run(model, context, *(max(1, size // 8) for size in sizes))
        gc.collect()
        gc.freeze()
        for _ in tqdm(range(rounds), desc=case, unit="round"):
            for name in rng.sample(list(contexts), len(contexts)):
                seconds[name].append(run(model, contexts[name], *sizes))
        gc.unfreeze()
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: np.ndarray) -> dict[str, Any]:
    """The median and the quartiles of all rounds."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "quartiles": [float(low), float(high)]}


def prefill(model: PreTrainedModel, context: Callable[..., Any], tokens: int) -> float:
    """Seconds of one forward pass, including entry and exit of the variant."""
    ids = _tokens(model, tokens)
    began = _now(model)
    inside(context, model, lambda model: model(ids, logits_to_keep=1))
    return _now(model) - began


def decode(model: PreTrainedModel, context: Callable[..., Any], tokens: int) -> float:
    """Seconds of `tokens` single-token steps, including exit of the variant; a prefill of 512 tokens is not timed."""
    began = 0.0

    def steps(model: PreTrainedModel) -> None:
        nonlocal began
        out = model(_tokens(model, 512), use_cache=True, logits_to_keep=1)
        began = _now(model)
        for _ in range(tokens):
            chosen = out.logits[:, -1:].argmax(dim=-1)
            out = model(chosen, past_key_values=out.past_key_values, use_cache=True)

    inside(context, model, steps)
    return _now(model) - began


def generate(model: PreTrainedModel, context: Callable[..., Any], tokens: int, new: int) -> float:
    """Seconds of greedy `generate`, including entry and exit of the variant."""
    ids = _tokens(model, tokens)
    keywords = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    began = _now(model)
    inside(context, model, lambda model: model.generate(ids, attention_mask=torch.ones_like(ids), **keywords))
    return _now(model) - began


def fixed_costs(model: PreTrainedModel, rounds: int, tokens: int = 16) -> dict[str, Any]:
    """Milliseconds to enter and leave `ql.watch` with the default probes around one small pass, and to record it."""
    ids, seconds = _tokens(model, tokens), dict[str, list[float]]()
    with torch.no_grad():
        for _ in tqdm(range(rounds + 1), desc="enter, leave, record", unit="round"):
            marks = [_now(model)]
            model(ids)
            marks.append(_now(model))
            with default_probes(model) as seen:
                marks.append(_now(model))
                model(ids)
                marks.append(_now(model))
            marks.append(_now(model))
            seen.recording()
            marks.append(_now(model))
            bare, enter, watched, leave, record = np.diff(marks)
            spent = {
                "enter": enter,
                "leave": leave,
                "record": record,
                "enter, leave and record": enter + leave + record,
            }
            for name, value in ({"bare pass": bare, "watched pass": watched} | spent).items():
                seconds.setdefault(name, []).append(1000 * value)
    warm = {name: quartiles(np.array(values[1:])) for name, values in seconds.items()}
    return {"layers": model.config.num_hidden_layers, "tokens": tokens, "rounds": rounds, "milliseconds": warm}


CALLS: dict[str, Callable[..., float]] = {"prefill": prefill, "decode": decode, "generate": generate}


def _tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(3, model.config.vocab_size, (1, count), generator=generator).to(model.device)


def _now(model: PreTrainedModel) -> float:
    """On a CPU, the CPU time of this process, so that other processes do not count; on a GPU, wall time."""
    if model.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
