"""Base class for probes: declare the tensors you need, reduce them as they arrive."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from transformers.cache_utils import Cache

from qwenlab.arguments import integer
from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.layout import head_counts
from qwenlab.capture.tokens import FOLDS, TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, MissingPart, UnknownLayer
from qwenlab.probes.accumulators import LayerSlice, copied
from qwenlab.probes.bins import BINS

Reduced = dict[str, torch.Tensor]
"""Reduced values of one layer part; stacked along a first axis for several layers."""

Variable = tuple[tuple[str, ...], np.ndarray, str, str]
"""Dims, values, units and meaning of one variable of a recording."""

MAX_WAITING_BYTES = 2**19
"""Bytes of a layer's values that a probe may return unreduced from `reduce`, to reduce several layers at once."""

GROUPED = ("label", "fold", "layer")
"""Dims of the sums of all probes."""

_MIXERS = {DELTANET: "a DeltaNet mixer", ATTENTION: "a softmax-attention mixer"}
_NUMBERED = ("head", "key_head", "expert", "expert_2", "expert_next")


class Probe(ABC):
    """Captures tensors of each layer and reduces them at once. It serves one `watch` at a time, which empties it first.

    A subclass declares the values it needs with `sites`. `reduce` gets them, one layer at a time, and returns
    something small. `accumulate` adds that up, for several layers at a time, and `dataset` returns the sums.

    layers  only these layers (indices in the target model); by default every layer that has what the probe reads
    every   measure one token per block of this many, for probes that can skip tokens; 1 measures all
    """

    name: ClassVar[str]
    reads: ClassVar[str] = ""  # the part of a layer that it reads, unless that is a `kind` of mixer
    kind: ClassVar[str] = ""  # "" for any
    settings: ClassVar[tuple[str, ...]] = ()  # further arguments that the recording tells, unless they are None
    changing: ClassVar[tuple[str, ...]] = ()  # the attributes that a pass changes, if `dataset` needs no `decoder`
    _heads: list[int] | None = None  # those that the user chose

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 1) -> None:
        self.every = integer(type(self).__name__, "every", every, least=1, unit="tokens")
        self._layers = None if layers is None else tuple(layers)
        self.layers: tuple[int, ...] = ()
        self.session: Any = None  # the WatchSession that last started it

    def start(self, decoder: Decoder) -> None:
        """Prepare for this model: choose layers, empty all sums. Raises MissingPart and UnknownLayer."""
        self.decoder = decoder
        able, name = self.able(decoder), type(self).__name__
        reads = self.reads or _MIXERS.get(self.kind, "the part that it reads")
        if not able:
            raise MissingPart(
                f"{name}() finds nothing to read: none of this model's {len(decoder.layers)} layers has {reads}.\n"
                f"Leave {name}() out for this model."
            )
        unknown = [layer for layer in self._layers or () if layer not in able]
        if unknown or self._layers == ():
            raise UnknownLayer(
                f"{name}(layers=...) names {f'layers {unknown}' if unknown else 'no layer'}; "
                f"it reads layers {list(able)} of this model.\nLeave `layers` out to read all of them."
            )
        self.layers = able if self._layers is None else tuple(sorted(set(self._layers)))
        self._kinds = [decoder.layer_types[layer] for layer in self.layers]

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """Return the layers of this model that have the part that the probe reads."""
        return decoder.layers_of(self.kind) if self.kind else tuple(range(len(decoder.layers)))

    def sites(self, layer: int) -> Iterable[str]:
        """Return the names of the values to capture in this layer, as listed in `CaptureHooks`."""
        return ()

    def sampled_sites(self, layer: int) -> Iterable[str]:
        """Return those of `sites` that `reduce` reads only by `tokens.sample(self.every).of(captured[name])`.

        In decode, they are captured only at the steps that some probe samples.
        """
        return ()

    def state_heads(self, layer: int) -> Iterable[int]:
        """Return the value heads whose states a probe of `mixer.state` reads."""
        return range(head_counts(self.decoder, layer)[0])

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        """Reduce the captured values of one part of one layer to something small; None if nothing is left.

        The tensors have the same names and shapes in every layer.
        """
        raise NotImplementedError(f"{type(self).__name__} captures values and does not implement reduce")

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        """Add up the reduced values of a part in several layers, each [layer, ...]; `where` indexes `self.layers`."""
        raise NotImplementedError(f"{type(self).__name__} reduces values and does not implement accumulate")

    def on_tokens(self, tokens: TokenBatch) -> None:  # noqa: B027  most probes have no use for these
        """Called once per forward pass, or per group of decode steps, with the tokens that it reads."""

    def on_cache(self, cache: Cache, forward_pass: ForwardPass) -> None:  # noqa: B027
        """Called after each forward pass with its cache."""

    def check(self) -> None:  # noqa: B027
        """Called at the end of the block; raise if the measurements are inconsistent."""

    def end(self, whole: bool) -> None:  # noqa: B027
        """Release what only the block needed; `whole`: the block ended without an error."""

    @abstractmethod
    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Return the measurements so far as sums and counts."""

    def snapshot(self, labels: list[str]) -> Callable[[], xr.Dataset]:
        """Return a function that builds `dataset(labels)` as of now, whatever is measured later.

        It holds copies of the attributes in `changing`, and no model. A class that does not name its own, as it may
        change more than its base class does, builds the Dataset at once.
        """
        if "changing" not in vars(type(self)):
            dataset = self.dataset(labels)
            return lambda: dataset
        frozen = copy.copy(self)
        del frozen.decoder, frozen.session
        for name in self.changing:
            setattr(frozen, name, copied(getattr(self, name)))
        return partial(frozen.dataset, list(labels))

    def sample(self) -> dict[str, Any]:
        """Return what the probe leaves out, for the recording; empty if it measures everything."""
        layers = {} if self._layers is None else {"layers": list(self.layers)}
        tokens = {} if self.every == 1 else {"every": self.every}
        chosen: dict[str, Any] = {"heads": self._heads} | {name: getattr(self, name) for name in self.settings}
        return layers | tokens | {name: value for name, value in chosen.items() if value is not None}

    def build_dataset(self, labels: list[str], variables: dict[str, Variable], **coords: Any) -> xr.Dataset:
        """Return a Dataset of these variables, with the coordinates that all probes share."""
        data = {
            name: xr.Variable(dims, values, {"units": units, "long_name": meaning})
            for name, (dims, values, units, meaning) in variables.items()
        }
        dims = {dim for variable in data.values() for dim in variable.dims}
        shared = {
            "label": ("label", np.array(labels, dtype=object)),
            "fold": ("fold", np.arange(FOLDS)),
            "layer": ("layer", np.array(self.layers, dtype=np.int64)),
            "kind": ("layer", np.array(self._kinds, dtype=object)),
        }
        shared = {name: value for name, value in shared.items() if value[0] in dims}
        numbered = {dim: (dim, np.arange(n)) for v in data.values() for dim, n in v.sizes.items() if dim in _NUMBERED}
        binned = {dim: BINS[dim] for dim in BINS if dim in dims}
        attrs = {"probe": type(self).__name__, "sample": json.dumps(self.sample())}
        return xr.Dataset(data, {**shared, **numbered, **binned, **coords}, attrs)


class HeadProbe(Probe):
    """Base class for probes of some heads of each layer. `heads`: only these: value heads, or query heads."""

    def __init__(
        self, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None, every: int = 64
    ) -> None:
        super().__init__(layers=layers, every=every)
        self._heads = None if heads is None else sorted(set(heads))
        self.heads: list[int] = []

    def start(self, decoder: Decoder) -> None:
        """Choose layers and heads. Raises BadArgument for heads that the layers do not have."""
        super().start(decoder)
        total, _ = head_counts(decoder, self.layers[0])
        self.heads = list(range(total)) if self._heads is None else self._heads
        if not self.heads or not set(self.heads) <= set(range(total)):
            raise BadArgument(
                f"{type(self).__name__}(heads={self.heads}): its layers have heads 0 to {total - 1}.\n"
                "Leave `heads` out to read all of them."
            )

    def build_dataset(self, labels: list[str], variables: dict[str, Variable], **coords: Any) -> xr.Dataset:
        return super().build_dataset(labels, variables, head=("head", np.array(self.heads)), **coords)


def may_wait(*values: torch.Tensor) -> bool:
    """Return whether these values of one layer are small enough to be reduced in `accumulate`, in fewer torch calls."""
    return sum(value.nbytes for value in values) <= MAX_WAITING_BYTES


def summed(
    table: Mapping[str, tuple[str, str]], dims: tuple[str, ...], values: Callable[[str], np.ndarray]
) -> dict[str, Variable]:
    """Return a variable NAME_sum for every name in a table of units and meanings."""
    return {f"{name}_sum": (dims, values(name), units, meaning) for name, (units, meaning) in table.items()}
