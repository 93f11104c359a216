"""The attention probe: where each softmax-attention head looks, and how far its output gate is open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.errors import BadArgument
from qwenlab.probe.deltanet import GATE_BINS
from qwenlab.probe.probe import Probe
from qwenlab.probe.reading import Reading
from qwenlab.probe.taps import AttentionCall, Notes, Part
from qwenlab.probe.tally import Histogram, Sums

DISTANCE_EDGES = (0, 1, 2, 3, *(int(2**octave * step) for octave in range(2, 26) for step in (1, 1.5)), 2**26)
"""Lower edges, in tokens, of the bins of attention distance: every one up to 4, then two an octave."""

BLOCK = 2**22
"""Attention probabilities held at a time (elements): a block of query positions, never all of them."""

_ROW_STATISTICS = ("entropy", "first_mass", "previous_mass", "self_mass", "distance")


class Attention(Probe):
    """Entropy, sink, distance and output gate of every head of the softmax-attention layers.

    The probabilities are worked out again from the rotated queries and keys, block by block, for every n-th token of each
    sequence; the model's own attention kernel stays in use. For a query at position t with probabilities p over keys s <= t:

    entropy        -sum_s p ln p, in nats
    first mass     p on the sequence's first token (the usual sink); previous mass p on t - 1; self mass p on t
    distance       sum_s p (t - s), in tokens, and the mass by distance
    gate openness  mean over channels of sigmoid(gate), of every token

    layers  only these layers
    every   measure the tokens at positions every - 1, 2 every - 1, ... of each sequence; 1 measures all
    """

    name = "attention"

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 16) -> None:
        super().__init__(layers=layers)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise BadArgument(f"Attention(every={every!r}): give a whole number of tokens, 1 or more.")
        self.every = every

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        return decoder.layers_of(ATTENTION)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        names = (*_ROW_STATISTICS, "queries", "tokens", "gate")
        self._sums = {layer: {name: Sums() for name in names} for layer in self.layers}
        self._gate_bins = {layer: Histogram(GATE_BINS) for layer in self.layers}
        self._distance_mass = {layer: Sums() for layer in self.layers}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        return (("mixer", "attention"), ("mixer", "gate"))

    def sample(self) -> dict[str, Any]:
        return super().sample() | ({} if self.every == 1 else {"every": self.every})

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        call, gate = notes["attention"], notes["gate"]
        assert isinstance(call, AttentionCall) and isinstance(gate, torch.Tensor)
        sums = self._sums[layer]
        openness = torch.sigmoid(gate).mean(dim=-1, dtype=torch.float32)
        sums["gate"].add(reading, openness)
        sums["tokens"].add(reading, torch.ones_like(reading.position))
        self._gate_bins[layer].add(reading, openness * GATE_BINS)
        self._measure(layer, call, reading)

    def _measure(self, layer: int, call: AttentionCall, reading: Reading) -> None:
        """Statistics of the rows of every n-th token, a block of rows at a time."""
        column, measured = self._queries(reading)
        heads, columns = call.query.shape[1], call.key.shape[2]
        key_position = self._key_positions(reading, columns)
        block = max(1, BLOCK // (reading.batch * heads * columns))
        for start in range(0, column.shape[1], block):
            chosen, counted = column[:, start : start + block], measured[:, start : start + block]
            query = call.query.gather(2, chosen[:, None, :, None].expand(-1, heads, -1, call.query.shape[3]))
            position = reading.position.gather(1, chosen)
            group = torch.where(counted, reading.group.gather(1, chosen), 0).flatten()
            rows = _rows(query, call.key, call.scaling, position, key_position, reading.past + chosen)
            statistics, mass = _row_statistics(rows, position, key_position)
            for name, values in statistics.items():
                self._sums[layer][name].move(reading.groups, group, values.transpose(1, 2).flatten(0, 1))
            self._sums[layer]["queries"].move(reading.groups, group, torch.ones_like(group))
            self._distance_mass[layer].move(reading.groups, group, mass.transpose(1, 2).flatten(0, 1))

    def _queries(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns [batch, slot] of the tokens to measure, and which slots hold one; their number needs no look at the data."""
        slots = torch.arange(reading.width // self.every + 1, device=reading.position.device)
        before = torch.where(reading.real, reading.position, 2**62).amin(dim=1, keepdim=True)
        wanted = (before // self.every + slots) * self.every + self.every - 1
        # Positions never fall along a row, so the first column that reaches the wanted one is it or there is none.
        position = torch.where(reading.real, reading.position, -1).cummax(dim=1).values
        column = torch.searchsorted(position, wanted).clamp_max(reading.width - 1)
        found = (reading.position.gather(1, column) == wanted) & reading.real.gather(1, column)
        return column, found

    def _key_positions(self, reading: Reading, columns: int) -> torch.Tensor:
        """int [batch, column]: position of each key in its own sequence, -1 for padding and unwritten columns."""
        if reading.keys is None:
            return torch.arange(columns, device=reading.position.device).expand(reading.batch, -1)
        keys = reading.keys[:, :columns]
        position = torch.where(keys, keys.long().cumsum(1) - 1, -1)
        return torch.nn.functional.pad(position, (0, columns - keys.shape[1]), value=-1)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        each, count = ("label", "fold", "layer", "head"), len(labels)
        meanings = {
            "entropy": ("nat", "entropy of the attention row, summed over queries"),
            "first_mass": ("1", "probability on the first token, summed over queries"),
            "previous_mass": ("1", "probability on the token before, summed over queries"),
            "self_mass": ("1", "probability on the query's own token, summed over queries"),
            "distance": ("token", "mean distance of the row, summed over queries"),
            "gate": ("1", "openness of the output gate, sigmoid(gate) averaged over channels, summed over tokens"),
        }
        heads = self.decoder.part(self.layers[0], "mixer").q_proj.out_features // (
            2 * self.decoder.part(self.layers[0], "mixer").head_dim
        )

        def stacked(name: str, *shape: int) -> np.ndarray:
            arrays = [self._sums[layer][name].array(count) for layer in self.layers]
            return np.stack([a if a.ndim == 2 + len(shape) else np.zeros((*a.shape[:2], *shape)) for a in arrays], axis=2)

        variables = {
            f"{name}_sum": (each, stacked(name, heads), units, meaning) for name, (units, meaning) in meanings.items()
        }
        for name, unit, meaning in (("queries", "query", "queries measured"), ("tokens", "token", "tokens read")):
            variables[name] = (each[:3], stacked(name).round().astype(np.int64), unit, meaning)
        gate = np.stack([self._gate_bins[layer].array(count) for layer in self.layers], axis=1)
        variables["gate_hist"] = (("label", "layer", "head", "gate_bin"), gate, "token", "tokens by openness of the gate")
        mass = [self._distance_mass[layer].array(count).sum(axis=1) for layer in self.layers]
        mass = [m if m.ndim == 3 else np.zeros((count, heads, len(DISTANCE_EDGES))) for m in mass]
        distances = ("label", "layer", "head", "distance_bin")
        variables["distance_mass"] = (distances, np.stack(mass, axis=1), "1", "attention mass by distance, summed over queries")
        edges = {
            "gate_bin": ("gate_bin", np.arange(GATE_BINS) / GATE_BINS, {"units": "1", "long_name": "lower edge"}),
            "distance_bin": ("distance_bin", np.array(DISTANCE_EDGES), {"units": "token", "long_name": "lower edge"}),
        }
        return self._dataset(labels, variables, **edges)


def _rows(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    position: torch.Tensor,
    key_position: torch.Tensor,
    column: torch.Tensor,
) -> torch.Tensor:
    """Attention probabilities [batch, head, query, column], causal, padding left out, in float32."""
    grouped = query.unflatten(1, (key.shape[1], -1)).float()
    scores = torch.einsum("bgrqd,bgsd->bgrqs", grouped, key.float()).flatten(1, 2) * scaling
    columns = torch.arange(key.shape[2], device=key.device)
    seen = (key_position >= 0)[:, None, :] & (columns <= column[:, :, None])
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    return torch.nan_to_num(scores.softmax(dim=-1))


def _row_statistics(
    rows: torch.Tensor, position: torch.Tensor, key_position: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Statistics of each row [batch, head, query], and its mass by bin of distance [batch, head, query, bin]."""
    distance = (position[:, :, None] - key_position[:, None, :])[:, None]
    first = (key_position == 0)[:, None, None]
    edges = torch.tensor(DISTANCE_EDGES[1:], device=rows.device)
    bins = torch.bucketize(distance.clamp_min(0), edges, right=True).expand_as(rows)
    mass = rows.new_zeros(*rows.shape[:3], len(DISTANCE_EDGES)).scatter_add_(3, bins, rows)
    statistics = {
        "entropy": torch.special.entr(rows).sum(dim=-1),
        "first_mass": (rows * first).sum(dim=-1),
        "previous_mass": mass[..., 1],
        "self_mass": mass[..., 0],
        "distance": (rows * distance).sum(dim=-1),
    }
    return {name: statistics[name] for name in _ROW_STATISTICS}, mass
