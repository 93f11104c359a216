"""Torch's own functions in the place of fused kernels, for tensors on the CPU.

transformers binds the kernels of flash-linear-attention and causal_conv1d when it imports a modeling file, whatever the
device of the model. Those kernels need a GPU. Here such a binding is made to depend on the device of each call's
tensors: `run_on_cpu` for good, `running_on_cpu` for the length of a block.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from types import CellType
from typing import Any

from torch import nn

from qwenlab.checkpoint.families import Family
from qwenlab.errors import BadArgument

CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
"""The names by which a DeltaNet layer calls its convolution, in every modeling file."""

_PACKED = ("cu_seqlens", "seq_idx")
"""Arguments that say where the sequences of a packed row begin: torch's own functions ignore them."""

_lock = Lock()


def run_on_cpu(family: Family) -> None:
    """Let models of this family run on the CPU, where fused kernels are installed that need a GPU.

    From now on their DeltaNet layers call torch's own functions with tensors on the CPU, and the fused kernels with all
    others. Nothing is done where the kernels that transformers bound run on a CPU: torch's own, or those of
    flash-linear-attention in Triton's interpreter.
    """
    for binding in _bindings(family):
        binding.acquire()


@contextmanager
def running_on_cpu(family: Family) -> Iterator[None]:
    """`run_on_cpu` for the length of a block; blocks may overlap, also in several threads."""
    bindings = _bindings(family)
    for binding in bindings:
        binding.acquire()
    try:
        yield
    finally:
        for binding in bindings:
            binding.release()


def implementation(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """What runs when a DeltaNet layer whose weights are on this type of device calls `function`.

    function  one of the family's two rules or `CONVOLUTIONS`, as the modeling file has it
    device    "cpu", "cuda", ...
    """
    binding = _Binding.of(function)
    if binding is None:
        return _unwrapped(function)
    return binding.plain if device == "cpu" and binding.needs_gpu else binding.bound


class _ByDevice:
    """Calls torch's own function with tensors on the CPU, and the fused kernel with all others.

    blocks  how many `running_on_cpu` and `run_on_cpu` rely on it
    """

    def __init__(self, fused: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.fused, self.plain, self.blocks = fused, plain, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        if first.device.type != "cpu":
            return self.fused(*args, **kwargs)
        for name in _PACKED:
            if kwargs.pop(name, None) is not None:
                raise BadArgument(
                    f"{name}: the CPU has no kernel that keeps the sequences of a packed row apart.\n"
                    "Run the model on a GPU, or give each sequence a row of its own, padded."
                )
        return self.plain(*args, **kwargs)


@dataclass(frozen=True)
class _Binding:
    """A function of a modeling file, and what transformers bound it to.

    cell   of the closure in which transformers keeps what it bound: a fused kernel, or torch's own function
    plain  torch's own function
    """

    cell: CellType
    plain: Callable[..., Any]

    @staticmethod
    def of(function: Callable[..., Any]) -> _Binding | None:
        """The binding behind a function; None where a function stands that transformers did not bind."""
        binding = _unwrapped(function)
        if not _binds(binding):
            return None
        cells = dict(zip(binding.__code__.co_freevars, binding.__closure__ or (), strict=True))
        return _Binding(cells["implementation"], inspect.unwrap(binding))

    @property
    def bound(self) -> Callable[..., Any]:
        """What transformers bound."""
        held = self.cell.cell_contents
        kernel: Callable[..., Any] = held.fused if isinstance(held, _ByDevice) else held
        return kernel

    @property
    def needs_gpu(self) -> bool:
        """Whether it is a fused kernel that cannot run on the CPU."""
        package = self.bound.__module__.partition(".")[0]
        return package == "causal_conv1d" or (package == "fla" and not _interpreted())

    def acquire(self) -> None:
        """Go by the device of tensors from now on, until each `acquire` was followed by a `release`."""
        with _lock:
            if not isinstance(self.cell.cell_contents, _ByDevice):
                self.cell.cell_contents = _ByDevice(self.bound, self.plain)
            self.cell.cell_contents.blocks += 1

    def release(self) -> None:
        """Put the fused kernel back, unless others still rely on this."""
        with _lock:
            self.cell.cell_contents.blocks -= 1
            if not self.cell.cell_contents.blocks:
                self.cell.cell_contents = self.bound


def _binds(function: Callable[..., Any]) -> bool:
    """Whether this is the wrapper in which transformers keeps what it bound."""
    return "implementation" in getattr(getattr(function, "__code__", None), "co_freevars", ())


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the wrappers that name what they wrap, down to the one in which transformers bound it."""
    function = inspect.unwrap(function, stop=_binds)
    if not isinstance(function, nn.Module):
        return function
    if "forward" in vars(function):  # a kernel of the hub was put there
        return function.forward
    made_of = inspect.getclosurevars(type(function).forward).nonlocals.get("func", function.forward)
    return inspect.unwrap(made_of, stop=_binds)  # the `kernels` package makes modules of functions


def _bindings(family: Family) -> list[_Binding]:
    """Those of a family whose kernels cannot run on the CPU."""
    names = vars(sys.modules[family.modeling])
    functions = [names.get(name) for name in (family.chunk_rule, family.recurrent_rule, *CONVOLUTIONS)]
    found = [_Binding.of(function) for function in functions if function is not None]
    return [binding for binding in found if binding is not None and binding.needs_gpu]


def _interpreted() -> bool:
    """Whether Triton interprets its kernels, which it can on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
