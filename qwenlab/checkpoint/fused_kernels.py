"""Fused GPU kernels: replaced by torch's own functions for tensors on the CPU, and named by what a model calls.

transformers binds the kernels of flash-linear-attention and causal_conv1d when it imports a modeling file, on any
device, but those kernels need a GPU. This file makes such a binding depend on the device of each call's tensors:
`run_on_cpu` permanently, `running_on_cpu` inside a block.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from types import CellType
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET, Family
from qwenlab.checkpoint.mixers.gated_deltanet import CONVOLUTIONS
from qwenlab.errors import BadArgument

_PACKED = ("cu_seqlens", "seq_idx")
"""Arguments that give the start of each sequence in a packed row; torch's own functions ignore them."""

_lock = Lock()


def run_on_cpu(family: Family) -> None:
    """Let models of this family run on the CPU even if fused kernels are installed that need a GPU.

    From now on their DeltaNet layers call torch's own functions for tensors on the CPU, and the fused kernels for all
    others. Nothing changes if the bound kernels run on a CPU: torch's own, or those of flash-linear-attention in
    Triton's interpreter.
    """
    for binding in _bindings(family):
        binding.acquire()


@contextmanager
def running_on_cpu(family: Family) -> Iterator[None]:
    """Context manager version of `run_on_cpu`; blocks may overlap, also in several threads."""
    with ExitStack() as stack:
        for binding in _bindings(family):
            binding.acquire()
            stack.callback(binding.release)
        yield


def implementation(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return the function that runs when a DeltaNet layer on this type of device calls `function`.

    function  one of the family's two rules or `CONVOLUTIONS`, from the modeling file
    device    "cpu", "cuda", ...
    """
    binding = _Binding.of(function)
    if binding is None:
        return _unwrapped(function)
    return binding.plain if device == "cpu" and binding.needs_gpu else binding.bound


class _ByDevice:
    """Dispatcher: torch's own function for tensors on the CPU, the fused kernel for all others.

    blocks  number of `running_on_cpu` and `run_on_cpu` calls that depend on it
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
                    f"{name}: no kernel on the CPU can separate the sequences of a packed row.\n"
                    "Run the model on a GPU, or put each sequence into its own row, with padding."
                )
        return self.plain(*args, **kwargs)


@dataclass(frozen=True)
class _Binding:
    """A function of a modeling file, and the kernel that transformers bound it to.

    cell   closure cell with the bound function: a fused kernel, or torch's own function
    plain  torch's own function
    """

    cell: CellType
    plain: Callable[..., Any]

    @staticmethod
    def of(function: Callable[..., Any]) -> _Binding | None:
        """The binding behind a function; None if transformers did not bind the function."""
        binding = _unwrapped(function)
        if not _binds(binding):
            return None
        cells = dict(zip(binding.__code__.co_freevars, binding.__closure__ or (), strict=True))
        return _Binding(cells["implementation"], inspect.unwrap(binding))

    @property
    def bound(self) -> Callable[..., Any]:
        """The function that transformers bound."""
        content = self.cell.cell_contents
        return content.fused if isinstance(content, _ByDevice) else content

    @property
    def needs_gpu(self) -> bool:
        """Whether it is a fused kernel that cannot run on the CPU."""
        package = self.bound.__module__.partition(".")[0]
        interpreter = os.environ.get("TRITON_INTERPRET", "0").lower()  # Triton's interpreter runs on any device
        return package == "causal_conv1d" or (package == "fla" and interpreter not in ("1", "true", "yes", "on", "y"))

    def acquire(self) -> None:
        """Dispatch by the device of the tensors, until every `acquire` is matched by a `release`."""
        with _lock:
            if not isinstance(self.cell.cell_contents, _ByDevice):
                self.cell.cell_contents = _ByDevice(self.bound, self.plain)
            self.cell.cell_contents.blocks += 1

    def release(self) -> None:
        """Restore the fused kernel, unless another block still depends on the dispatcher."""
        with _lock:
            self.cell.cell_contents.blocks -= 1
            if not self.cell.cell_contents.blocks:
                self.cell.cell_contents = self.bound


def _binds(function: Callable[..., Any]) -> bool:
    """Whether this is the wrapper in which transformers stores the bound function."""
    return "implementation" in getattr(getattr(function, "__code__", None), "co_freevars", ())


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remove wrappers with a `__wrapped__` attribute, down to the one in which transformers bound the function."""
    function = inspect.unwrap(function, stop=_binds)
    if not isinstance(function, nn.Module):
        return function
    if "forward" in vars(function):  # replaced by a kernel from the hub
        return function.forward
    inner = inspect.getclosurevars(type(function).forward).nonlocals.get("func", function.forward)
    return inspect.unwrap(inner, stop=_binds)  # the `kernels` package turns functions into modules


def _bindings(family: Family) -> list[_Binding]:
    """The bindings of a family whose kernels cannot run on the CPU."""
    names = vars(sys.modules[family.modeling])
    functions = [names.get(name) for name in (*family.deltanet.rules, *CONVOLUTIONS)]
    bindings = [_Binding.of(function) for function in functions if function is not None]
    return [binding for binding in bindings if binding is not None and binding.needs_gpu]


def kernel_of(decoder: Decoder) -> str:
    """Return the name of the chunked delta rule that the DeltaNet layers call: a package's kernel, or torch's own.

    Both names, sorted, for a model with layers on the CPU and on a GPU where fused kernels are installed; "none" for a
    model without DeltaNet layers.
    """
    devices = {_device_of(decoder.mixer(layer)) for layer in decoder.layers_of(DELTANET)}
    return ", ".join(sorted({kernel_on(device, decoder.family) for device in devices})) or "none"


def kernel_on(device: str, family: Family) -> str:
    """Return the name of the chunked delta rule that layers on this type of device call."""
    chosen = implementation(vars(sys.modules[family.modeling])[family.deltanet.chunk_rule], device)
    return f"{chosen.__module__}.{chosen.__name__}"


def _device_of(mixer: nn.Module) -> str:
    """Return the type of device that a mixer runs on; accelerate moves offloaded weights there for each call."""
    device = next(mixer.parameters()).device
    runs_on = getattr(getattr(mixer, "_hf_hook", None), "execution_device", None)
    return torch.device(runs_on).type if device.type == "meta" and runs_on is not None else device.type
