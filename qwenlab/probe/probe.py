"""What a probe is: the notes it wants of each layer, and what it makes of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from transformers.cache_utils import Cache

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import NothingToProbe, UnknownLayer
from qwenlab.probe.reading import FOLDS, Reading
from qwenlab.probe.taps import Notes, Part

Variable = tuple[tuple[str, ...], np.ndarray, str, str]
"""Dims, values, units and meaning of one variable of a recording."""


_NUMBERED = ("head", "key_head", "expert", "expert_2", "expert_next")


class Probe(ABC):
    """Reads notes and reduces them at once. It serves one `watch` at a time, and is emptied when that begins.

    layers  only these layers (indices of the trunk); by default every layer that has what the probe reads
    """

    name: ClassVar[str]
    reads: ClassVar[str] = "what it reads"

    def __init__(self, *, layers: Iterable[int] | None = None) -> None:
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

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """Reduce the notes of one part of one layer."""
        raise NotImplementedError(f"{type(self).__name__} wants notes and does not look at them")

    def look_at_cache(self, cache: Cache, reading: Reading) -> None:  # noqa: B027  most probes have no use for it
        """Look at what a forward pass left in its cache."""

    @abstractmethod
    def dataset(self, labels: list[str]) -> xr.Dataset:
        """What was seen so far, as sums and counts."""

    def sample(self) -> dict[str, Any]:
        """What was left out, for the recording; empty when nothing was."""
        return {} if self._chosen is None else {"layers": list(self.layers)}

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
