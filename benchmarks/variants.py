"""Context managers to time: none, our probes, plain hooks, and the packages `innards` and `nnsight` if installed."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

import qwenlab as ql
from qwenlab.checkpoint.decoder import decoder_of, module_of


@contextmanager
def default_probes(model: PreTrainedModel) -> Iterator[Any]:
    """`ql.watch` with the default probe set."""
    with ql.watch(model, *ql.probes.defaults(model)) as seen:
        yield seen


def some_defaults(chosen: Callable[[str], bool]) -> Callable[[PreTrainedModel], Any]:
    """`ql.watch` with the default probes whose names are chosen."""
    return lambda model: ql.watch(model, *(p for p in ql.probes.defaults(model) if chosen(type(p).__name__)))


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


READ = {
    "mixer": ("", "in_proj_qkv", "in_proj_b", "in_proj_a", "norm", "q_proj", "k_proj"),
    "mlp_norm": ("",),
    "mlp": ("",),
    "router": ("",),
    "experts": ("",),
    "shared_expert": ("",),
    "shared_expert_gate": ("",),
}
"""By part of a layer: itself (""), or its submodules, that have what the default probes read as input or output."""


@contextmanager
def keep_what_defaults_read(model: PreTrainedModel) -> Iterator[None]:
    """Plain forward hooks that keep inputs and outputs where the default probes read; no copy, no arithmetic."""
    kept: list[Any] = []
    handles = [module.register_forward_hook(lambda *call: kept.append(call[1:])) for module in read_modules(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules of READ, and every layer, whose input is the residual stream."""
    decoder, found = decoder_of(module_of(model)), list[torch.nn.Module]()
    for number, layer in enumerate(decoder.layers):
        parts = {name: module for name in READ if (module := decoder.part(number, name)) is not None}
        inner = {name: dict(module.named_modules()) for name, module in parts.items()}
        found += [layer, *(inner[name][path] for name in inner for path in READ[name] if path in inner[name])]
    return found


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


class Traced(torch.nn.Module):
    """A trace of the package `nnsight` that saves the output of every layer's mixer and MLP, at every forward pass.

    nnsight runs the model itself, so this is not a context manager: `inside` gives it what to run. nnsight leaves its
    wrappers on every module, so it gets its own copy of the model, which shares the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tree: Any = None

    def forward(self, work: Callable[[PreTrainedModel], Any]) -> None:
        """What nnsight calls in a trace."""
        work(self.model)

    def run(self, model: PreTrainedModel, work: Callable[[PreTrainedModel], Any]) -> list[Any]:
        """Run the work in a trace; return what was saved."""
        if self.tree is None:
            self.tree, self.parts = self._wrapped(model)
        parts = self.parts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "a loop over all passes ends early"
            with self.tree.trace(work) as tracer:
                saved = list().save()  # a method that nnsight adds to objects
                for _ in tracer.iter[:]:
                    for part in parts:
                        saved.append(part.output)
        return saved

    def _wrapped(self, model: PreTrainedModel) -> tuple[Any, list[Any]]:
        """The tree of nnsight over a copy of the model, and its parts to save."""
        import nnsight

        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        decoder = decoder_of(module_of(self.model))
        wanted = {id(decoder.part(n, part)) for n in range(len(decoder.layers)) for part in ("mixer", "mlp")}
        tree = nnsight.NNsight(self)
        return tree, [envoy for envoy in tree.modules() if id(envoy._module) in wanted]


def inside(context: Any, model: PreTrainedModel, work: Callable[[PreTrainedModel], Any]) -> None:
    """Run the work on the model inside a variant."""
    if isinstance(context, Traced):
        context.run(model, work)
        return
    with context(model):
        work(model)


DEFAULTS = ("DeltaNet", "Attention", "Routing", "Residual", "Timing", "Memory")
"""The names of the default probes."""


def variants(case: str) -> dict[str, Any]:
    """The variants of a case; the bare call comes twice, the second time as noise floor.

    Default probes one by one are timed at `prefill 256` and `decode 64`, where the fixed cost of a probe shows.
    """
    contexts: dict[str, Any] = {
        "bare": lambda model: nullcontext(),
        "bare again": lambda model: nullcontext(),
        "default probes": default_probes,
        "thorough probes": thorough_probes,
        "keep what the default probes read": keep_what_defaults_read,
        "cache every activation": cache_everything,
    }
    if case in ("prefill 256", "decode 64"):
        contexts |= {f"{name} alone": some_defaults(name.__eq__) for name in DEFAULTS}
        contexts["defaults without Routing"] = some_defaults("Routing".__ne__)
    if importlib.util.find_spec("nnsight"):
        contexts["nnsight"] = Traced()
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
