"""What a probe is: the notes it wants of each layer, and what it makes of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from transformers.cache_utils import Cache

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.tokens import FOLDS, TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument, NothingToProbe, UnknownLayer
from qwenlab.probes.accumulators import At

Reduced = dict[str, torch.Tensor]
"""What a probe keeps of the notes of one layer; stacked, of several."""

Variable = tuple[tuple[str, ...], np.ndarray, str, str]
"""Dims, values, units and meaning of one variable of a recording."""


_NUMBERED = ("head", "key_head", "expert", "expert_2", "expert_next")


class Probe(ABC):
    """Reads notes and reduces them at once. It serves one `watch` at a time, and is emptied when that begins.

    layers  only these layers (indices of the trunk); by default every layer that has what the probe reads
    every   measure one token of every so many, for probes that can leave tokens out; 1 measures all
    """

    name: ClassVar[str]
    reads: ClassVar[str] = "what it reads"

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 1) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise BadArgument(f"{type(self).__name__}(every={every!r}): give a whole number of tokens, 1 or more.")
        self.every = every
        self._chosen = None if layers is None else tuple(layers)
        self.layers: tuple[int, ...] = ()
        self.watch: Any = None  # the `Seen` that it was last started by

    def start(self, decoder: Decoder) -> None:
        """Make ready for this model: choose layers, empty every tally. Raises NothingToProbe and UnknownLayer."""
        self.decoder = decoder
        able, name = self.able(decoder), type(self).__name__
        if not able:
            raise NothingToProbe(
                f"{name}() finds nothing to read: none of this model's {len(decoder.layers)} layers has {self.reads}.\n"
                f"Leave {name}() out."
            )
        unknown = [layer for layer in self._chosen or () if layer not in able]
        if unknown or self._chosen == ():
            raise UnknownLayer(
                f"{name}(layers=...) names {f'layers {unknown}' if unknown else 'no layer'}; "
                f"it reads layers {list(able)} of this model.\nLeave `layers` out to read all of them."
            )
        self.layers = able if self._chosen is None else tuple(sorted(set(self._chosen)))

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers of this model that have what the probe reads."""
        return tuple(range(len(decoder.layers)))

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """Part and name of each note wanted of this layer (the names are in `Taps`)."""
        return ()

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced | None:
        """What is needed of the notes of one part of one layer, reduced to something small; None where it is nothing.

        The tensors have the same names and shapes in every layer.
        """
        raise NotImplementedError(f"{type(self).__name__} wants notes and does not keep anything of them")

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up what was kept of a part in some layers, each tensor [layer, ...]: `where` among `self.layers`."""
        raise NotImplementedError(f"{type(self).__name__} keeps something and does not look at it")

    def look_at_tokens(self, reading: TokenBatch) -> None:  # noqa: B027  most probes have no use for these
        """Look at which tokens were read, or are about to be."""

    def look_at_cache(self, cache: Cache, passed: ForwardPass) -> None:  # noqa: B027
        """Look at what a forward pass left in its cache."""

    def check(self) -> None:  # noqa: B027
        """The block has ended: raise if what was seen contradicts itself."""

    def end(self, whole: bool) -> None:  # noqa: B027
        """Let go of what only the block needed; `whole`: it ended without an error."""

    @abstractmethod
    def dataset(self, labels: list[str]) -> xr.Dataset:
        """What was seen so far, as sums and counts."""

    def sample(self) -> dict[str, Any]:
        """What was left out, for the recording; empty when nothing was."""
        layers = {} if self._chosen is None else {"layers": list(self.layers)}
        return layers | ({} if self.every == 1 else {"every": self.every})

    def _dataset(self, labels: list[str], variables: dict[str, Variable], **coords: Any) -> xr.Dataset:
        """A Dataset of these variables, on the coordinates that every probe shares."""
        kinds = [self.decoder.layer_types[layer] for layer in self.layers]
        data = {
            name: xr.Variable(dims, values, {"units": units, "long_name": meaning})
            for name, (dims, values, units, meaning) in variables.items()
        }
        dims = {dim for variable in data.values() for dim in variable.dims}
        shared = {
            "label": ("label", np.array(labels, dtype=object)),
            "fold": ("fold", np.arange(FOLDS)),
            "layer": ("layer", np.array(self.layers, dtype=np.int64)),
            "kind": ("layer", np.array(kinds, dtype=object)),
        }
        kept = {name: value for name, value in shared.items() if value[0] in dims}
        numbered = {dim: (dim, np.arange(n)) for v in data.values() for dim, n in v.sizes.items() if dim in _NUMBERED}
        attrs = {"probe": type(self).__name__, "sample": json.dumps(self.sample())}
        return xr.Dataset(data, {**kept, **numbered, **coords}, attrs)
