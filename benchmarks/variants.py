"""Context managers to time: none, our probes, hooks that cache every activation, and `innards` if installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

import qwenlab as ql


@contextmanager
def default_probes(model: PreTrainedModel) -> Iterator[None]:
    """`ql.watch` with the default probe set."""
    with ql.watch(model, *ql.probes.defaults(model)):
        yield


@contextmanager
def thorough_probes(model: PreTrainedModel) -> Iterator[None]:
    """`ql.watch` with every probe."""
    with ql.watch(model, *ql.probes.thorough(model)):
        yield


@contextmanager
def cache_everything(model: PreTrainedModel) -> Iterator[None]:
    """Plain forward hooks that store a copy of the output of every leaf module."""
    cache: list[torch.Tensor] = []

    def store(module: torch.nn.Module, args: Any, out: Any) -> None:
        cache.extend(value.clone() for value in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(value))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(store) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
def tokenizer() -> Any:
    """The tokenizer, opened once so that it is not timed."""
    return ql.open("toy-moe").tokenizer


@contextmanager
def innards(model: PreTrainedModel) -> Iterator[None]:
    """The package `innards` with all its analyzers, until its analysis is finished; it supports only `generate`."""
    import innards as peer

    watched = peer.observe(model, tokenizer(), model_id=type(model).__name__, store=False)
    try:
        yield
        watched.last_turn()
    finally:
        watched.close()


def variants(case: str) -> dict[str, Any]:
    """The variants of a case; the bare call comes twice, the second time as noise floor."""
    contexts: dict[str, Any] = {
        "bare": lambda model: nullcontext(),
        "bare again": lambda model: nullcontext(),
        "default probes": default_probes,
        "thorough probes": thorough_probes,
        "cache every activation": cache_everything,
    }
    if case.startswith("generate") and importlib.util.find_spec("innards"):
        tokenizer()
        contexts["innards"] = innards
    return contexts


MAPS = {
    "ImplicitAttention": lambda: ql.probes.ImplicitAttention(),
    "ImplicitAttention(every=1)": lambda: ql.probes.ImplicitAttention(every=1),
    "SoftmaxAttention": lambda: ql.probes.SoftmaxAttention(),
    "SoftmaxAttention(every=1)": lambda: ql.probes.SoftmaxAttention(every=1),
}
STATES = {
    "DeltaState": lambda: ql.probes.DeltaState(),
    "DeltaState(every=16)": lambda: ql.probes.DeltaState(every=16),
    "Retention": lambda: ql.probes.Retention(),
}
PRECISION = {"StatePrecision": lambda: ql.probes.StatePrecision()}


def watching(probe: Callable[[], Any]) -> Callable[[PreTrainedModel], Any]:
    """`ql.watch` with a new probe for every call, which stores only sums."""
    return lambda model: ql.watch(model, probe())


def remembering() -> dict[str, Any]:
    """The bare call, and one variant per probe of maps and states."""
    probes = {name: watching(probe) for name, probe in (MAPS | STATES | PRECISION).items()}
    return {"bare": lambda model: nullcontext(), **probes}
