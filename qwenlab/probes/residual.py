"""The residual probe: how much each part of each layer adds to the residual stream, and in which direction."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import PARTS, Captured, Part
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probes.accumulators import LayerSlice, Sums, counted
from qwenlab.probes.base import GROUPED, Probe, Reduced, may_wait, summed

_PER_PART = {
    "norm": ("1", "norm of what the part adds to the stream, summed over tokens"),
    "stream_norm": ("1", "norm of the stream just before, summed over tokens"),
    "ratio": ("1", "norm of what the part adds over that of the stream, summed over tokens"),
    "cosine": ("1", "cosine of what the part adds to the stream, summed over tokens"),
}


class Residual(Probe):
    """Norm of each mixer's and MLP's contribution, norm of the stream it is added to, and the cosine between them.

    Summed over tokens, for a contribution c added to the stream x: ||c||, ||x||, ||c|| / ||x||, <c, x> / (||c|| ||x||).

    layers  only these layers
    every   measure one token per block of this many (chosen by `sampled_steps.drawn`); 1 measures all
    """

    name = "residual"
    changing = ("_sums",)

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 8) -> None:
        super().__init__(layers=layers, every=every)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self._sums = {part: Sums(len(self.layers)) for part in PARTS}

    def sites(self, layer: int) -> Iterable[str]:
        return ("mixer.input", "mixer", "mlp.input", "mlp")

    def sampled_sites(self, layer: int) -> Iterable[str]:
        return self.sites(layer)

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced:
        sample = tokens.sample(self.every)
        names = (part, f"{part}.input")
        added, stream = (sample.of(captured[name]) for name in names)  # type: ignore[arg-type]
        return {"added": added, "stream": stream} if may_wait(added, stream) else _norms(added, stream)

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        if "added" in reduced:
            reduced = _norms(reduced["added"], reduced["stream"])
        size, before = reduced["norm"], reduced["stream_norm"]
        tiny = torch.finfo(torch.float32).tiny
        self._sums[part].add(
            where,
            tokens.sample(self.every).tokens,
            norm=size,
            stream_norm=before,
            ratio=size / before.clamp_min(tiny),
            cosine=reduced["product"] / (size * before).clamp_min(tiny),
            tokens=torch.ones_like(size),
        )

    def dataset(self, labels: list[str]) -> xr.Dataset:
        def stacked(name: str) -> np.ndarray:
            """[label, fold, layer, part]"""
            return np.stack([self._sums[part].array(name, len(labels)) for part in PARTS], axis=3)

        variables = summed(_PER_PART, (*GROUPED, "part"), stacked)
        variables["tokens"] = (GROUPED, counted(stacked("tokens")[..., 0]), "token", "tokens measured")
        return self.build_dataset(labels, variables, part=("part", np.array(PARTS, dtype=object)))


def _norms(added: torch.Tensor, stream: torch.Tensor) -> Reduced:
    """Return norms and inner product of what a part adds and of the stream, both [..., channel]."""
    added, stream = added.float(), stream.float()
    size, before = torch.linalg.vector_norm(added, dim=-1), torch.linalg.vector_norm(stream, dim=-1)
    return {"norm": size, "stream_norm": before, "product": torch.linalg.vecdot(added, stream)}
