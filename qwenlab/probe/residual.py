"""The residual probe: how much each part of each layer adds to the residual stream, and in which direction."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.probe import Probe, Variable
from qwenlab.probe.reading import Reading
from qwenlab.probe.tally import Sums, by_layer, counted
from qwenlab.probe.taps import PARTS, Notes, Part

_STATISTICS = ("norm", "stream_norm", "ratio", "cosine")


class Residual(Probe):
    """Norm of each mixer's and MLP's contribution, beside the stream it is added to, and the cosine between them.

    Summed over tokens, for a contribution c added to the stream x: ||c||, ||x||, ||c|| / ||x||, <c, x> / (||c|| ||x||).

    layers  only these layers
    """

    name = "residual"

    def start(self, decoder: Decoder) -> None:
        """Empty sums for these layers."""
        super().start(decoder)
        self._sums = {(layer, part): Sums() for layer in self.layers for part in PARTS}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """What each part adds, and the stream it is added to."""
        return (("mixer", "stream"), ("mixer", "mixer"), ("mlp", "stream"), ("mlp", "mlp"))

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """Add up norms, ratio and cosine of every token."""
        added, stream = notes[part], notes["stream"]
        assert isinstance(added, torch.Tensor) and isinstance(stream, torch.Tensor)
        added, stream = added.float(), stream.float()
        size, before = torch.linalg.vector_norm(added, dim=-1), torch.linalg.vector_norm(stream, dim=-1)
        tiny = torch.finfo(torch.float32).tiny
        cosine = torch.linalg.vecdot(added, stream) / (size * before).clamp_min(tiny)
        ratio = size / before.clamp_min(tiny)
        self._sums[layer, part].add(reading, torch.stack([size, before, ratio, cosine, torch.ones_like(size)], dim=-1))

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer and part."""
        count, width = len(labels), len(_STATISTICS) + 1
        by_part = [by_layer((self._sums[layer, part] for layer in self.layers), count, width) for part in PARTS]
        values = np.stack(by_part, axis=3)  # [label, fold, layer, part, statistic]
        dims = ("label", "fold", "layer", "part")
        meanings = {
            "norm": "norm of what the part adds to the stream, summed over tokens",
            "stream_norm": "norm of the stream just before, summed over tokens",
            "ratio": "norm of what the part adds over that of the stream, summed over tokens",
            "cosine": "cosine of what the part adds to the stream, summed over tokens",
        }
        variables: dict[str, Variable] = {
            f"{name}_sum": (dims, values[..., index], "1", meanings[name]) for index, name in enumerate(_STATISTICS)
        }
        variables["tokens"] = (dims[:3], counted(values[..., 0, -1]), "token", "tokens read")
        return self._dataset(labels, variables, part=("part", np.array(PARTS, dtype=object)))
