"""What is laid around a forward pass: nothing, our probes, hooks that cache every activation, a peer if installed."""

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
    """`ql.watch` with every probe, leaving nothing out."""
    with ql.watch(model, *ql.probes.thorough(model)):
        yield


@contextmanager
def cache_everything(model: PreTrainedModel) -> Iterator[None]:
    """Plain forward hooks that keep a copy of the output of every leaf module."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: Any, out: Any) -> None:
        kept.extend(value.clone() for value in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(value))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(keep) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
def tokenizer() -> Any:
    """Opened once: its time is nobody's."""
    return ql.open("toy-moe").tokenizer


@contextmanager
def innards(model: PreTrainedModel) -> Iterator[None]:
    """The peer `innards`, with all its analyzers, until its analysis is finished. It sees `generate` only."""
    import innards as peer

    watched = peer.observe(model, tokenizer(), model_id=type(model).__name__, store=False)
    try:
        yield
        watched.last_turn()
    finally:
        watched.close()


def variants(case: str) -> dict[str, Any]:
    """The variants that can be timed in a case, the bare call first and a second time as the noise floor."""
    found: dict[str, Any] = {
        "bare": lambda model: nullcontext(),
        "bare again": lambda model: nullcontext(),
        "default probes": default_probes,
        "thorough probes": thorough_probes,
        "cache every activation": cache_everything,
    }
    if case.startswith("generate") and importlib.util.find_spec("innards"):
        tokenizer()
        found["innards"] = innards
    return found


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
    """`ql.watch` with a new one of these probes at every call, and nothing kept but sums."""
    return lambda model: ql.watch(model, probe())


def remembering() -> dict[str, Any]:
    """The bare call, and each probe of maps and states by itself."""
    probes = {name: watching(probe) for name, probe in (MAPS | STATES | PRECISION).items()}
    return {"bare": lambda model: nullcontext(), **probes}
