"""Paired timing: each round runs all variants in random order and compares them with its bare call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.variants import variants

CASES = ("prefill 512", "prefill 4096", "decode 64", "generate 512 + 1", "generate 512 + 64")


def measure(model: PreTrainedModel, case: str, rounds: int) -> dict[str, Any]:
    """Median and quartiles of the per-round ratio to the bare call, by variant."""
    seconds = paired(model, case, variants(case), rounds)
    bare = seconds["bare"]
    ratios = {name: quartiles(values / bare) for name, values in seconds.items()}
    return {"bare seconds, median": float(np.median(bare)), "rounds": rounds, "ratios": ratios}


def paired(model: PreTrainedModel, case: str, contexts: Mapping[str, Any], rounds: int) -> dict[str, np.ndarray]:
    """Seconds [round] by variant, after a bare call that warms up."""
    kind, *rest = case.split()
    run, sizes = CALLS[kind], [int(word) for word in rest if word.isdigit()]
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    rng = random.Random(0)
    with torch.no_grad():
        run(model, contexts["bare"], *sizes)
        for _ in tqdm(range(rounds), desc=case, unit="round"):
            for name in rng.sample(list(contexts), len(contexts)):
                seconds[name].append(run(model, contexts[name], *sizes))
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: np.ndarray) -> dict[str, Any]:
    """The median and the quartiles of all rounds."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "quartiles": [float(low), float(high)]}


def prefill(model: PreTrainedModel, context: Callable[..., Any], tokens: int) -> float:
    """Seconds of one forward pass, including entry and exit of the variant."""
    ids = _tokens(model, tokens)
    began = _now(model)
    with context(model):
        model(ids, logits_to_keep=1)
    return _now(model) - began


def decode(model: PreTrainedModel, context: Callable[..., Any], tokens: int) -> float:
    """Seconds of `tokens` single-token steps, including exit of the variant; a prefill of 512 tokens is not timed."""
    with context(model):
        out = model(_tokens(model, 512), use_cache=True, logits_to_keep=1)
        began = _now(model)
        for _ in range(tokens):
            chosen = out.logits[:, -1:].argmax(dim=-1)
            out = model(chosen, past_key_values=out.past_key_values, use_cache=True)
    return _now(model) - began


def generate(model: PreTrainedModel, context: Callable[..., Any], tokens: int, new: int) -> float:
    """Seconds of greedy `generate`, including entry and exit of the variant."""
    ids = _tokens(model, tokens)
    keywords = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    began = _now(model)
    with context(model):
        model.generate(ids, attention_mask=torch.ones_like(ids), **keywords)
    return _now(model) - began


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
