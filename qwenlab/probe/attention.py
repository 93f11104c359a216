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
from qwenlab.probe.deltanet import GATE_BINS, gate_bins
from qwenlab.probe.probe import Probe, Variable
from qwenlab.probe.reading import Reading
from qwenlab.probe.tally import Histogram, Sums, by_layer, counted
from qwenlab.probe.taps import AttentionCall, Notes, Part

DISTANCE_EDGES = (0, 1, 2, 3, *(int(2**octave * step) for octave in range(2, 26) for step in (1, 1.5)), 2**26)
"""Lower edges, in tokens, of the bins of attention distance: every one up to 4, then two an octave."""

BLOCK = 2**22
"""Attention probabilities held at a time (elements): a block of query positions, never all of them."""

_PER_HEAD = {
    "entropy": ("nat", "entropy of the attention row, summed over queries"),
    "first_mass": ("1", "probability on the first token, summed over queries"),
    "previous_mass": ("1", "probability on the token before, summed over queries"),
    "self_mass": ("1", "probability on the query's own token, summed over queries"),
    "distance": ("token", "mean distance of the row, summed over queries"),
    "gate": ("1", "openness of the output gate, sigmoid(gate) averaged over channels, summed over tokens"),
}


class Attention(Probe):
    """Entropy, sink, distance and output gate of every head of the softmax-attention layers.

    The probabilities are worked out again from the rotated queries and keys, block by block, for every n-th token of
    each sequence; the model's own attention kernel stays in use. For a query at position t with probabilities p over
    keys s <= t:

    entropy        -sum_s p ln p, in nats
    first mass     p on the sequence's first token (the usual sink); previous mass p on t - 1; self mass p on t
    distance       sum_s p (t - s), in tokens, and the mass by distance
    gate openness  mean over channels of sigmoid(gate), of every token

    layers  only these layers
    every   measure the tokens at positions every - 1, 2 every - 1, ... of each sequence; 1 measures all
    """

    name = "attention"
    reads = "a softmax-attention mixer"

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 16) -> None:
        super().__init__(layers=layers)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise BadArgument(f"Attention(every={every!r}): give a whole number of tokens, 1 or more.")
        self.every = every

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The softmax-attention layers."""
        return decoder.layers_of(ATTENTION)

    def start(self, decoder: Decoder) -> None:
        """Empty sums and histograms for these layers."""
        super().start(decoder)
        names = (*_PER_HEAD, "queries", "tokens", "distance_mass")
        self._sums = {name: {layer: Sums() for layer in self.layers} for name in names}
        self._gates = {layer: Histogram(GATE_BINS) for layer in self.layers}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the attention function, and the output gate."""
        return (("mixer", "attention"), ("mixer", "gate"))

    def sample(self) -> dict[str, Any]:
        """Layers and tokens, where not all of them are measured."""
        return super().sample() | ({} if self.every == 1 else {"every": self.every})

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """Add up the gates of every token, and the attention rows of every n-th."""
        call, gate = notes["attention"], notes["gate"]
        assert isinstance(call, AttentionCall)
        assert isinstance(gate, torch.Tensor)
        openness = torch.sigmoid(gate).mean(dim=-1, dtype=torch.float32)
        self._sums["gate"][layer].add(reading, openness)
        self._sums["tokens"][layer].add(reading, torch.ones_like(reading.position))
        self._gates[layer].add(reading, openness * GATE_BINS)
        self._measure(layer, call, reading)

    def _measure(self, layer: int, call: AttentionCall, reading: Reading) -> None:
        """Statistics of the rows of every n-th token, a block of rows at a time."""
        column, found = self._queries(reading)
        key, (heads, columns) = call.key.float(), (call.query.shape[1], call.key.shape[2])
        key_position = _key_positions(reading, columns)
        block = max(1, BLOCK // (reading.batch * heads * columns))
        for start in range(0, column.shape[1], block):
            chosen, counts = column[:, start : start + block], found[:, start : start + block]
            query = call.query.gather(2, chosen[:, None, :, None].expand(-1, heads, -1, call.query.shape[3]))
            rows = _rows(query, key, call.scaling, key_position, reading.past + chosen)
            values = _row_statistics(rows, reading.position.gather(1, chosen), key_position)
            group = torch.where(counts, reading.group.gather(1, chosen), 0).flatten()
            self._sums["queries"][layer].move(reading.groups, group, torch.ones_like(group))
            for name, value in values.items():  # [batch, head, query, ...]
                self._sums[name][layer].move(reading.groups, group, value.transpose(1, 2).flatten(0, 1))

    def _queries(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns [batch, slot] of the tokens to measure, and which slots hold one: as many as there can be at most."""
        slots = torch.arange(reading.width // self.every + 1, device=reading.position.device)
        wanted = (reading.begin // self.every + slots) * self.every + self.every - 1
        # Positions never fall along a row, so the first column that reaches the wanted one is it or there is none.
        position = torch.where(reading.real, reading.position, -1).cummax(dim=1).values
        column = torch.searchsorted(position, wanted).clamp_max(reading.width - 1)
        found = (reading.position.gather(1, column) == wanted) & reading.real.gather(1, column)
        return column, found

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer and head, and attention mass by distance."""
        grouped, count = ("label", "fold", "layer"), len(labels)
        heads = self.decoder.module.config.num_attention_heads

        def stacked(name: str, *shape: int) -> np.ndarray:
            return by_layer(self._sums[name].values(), count, *shape)

        variables: dict[str, Variable] = {
            f"{name}_sum": ((*grouped, "head"), stacked(name, heads), units, meaning)
            for name, (units, meaning) in _PER_HEAD.items()
        }
        variables["queries"] = (grouped, counted(stacked("queries")), "query", "queries measured")
        variables["tokens"] = (grouped, counted(stacked("tokens")), "token", "tokens read")
        gates = np.stack([tally.array(count, heads) for tally in self._gates.values()], axis=1)
        mass = stacked("distance_mass", heads, len(DISTANCE_EDGES)).sum(axis=1)
        by_head = ("label", "layer", "head")
        variables["gate_hist"] = ((*by_head, "gate_bin"), gates, "token", "tokens by openness of the output gate")
        variables["distance_mass"] = (
            (*by_head, "distance_bin"),
            mass,
            "1",
            "attention mass by distance, summed over queries",
        )
        edges = ("distance_bin", np.array(DISTANCE_EDGES), {"units": "token", "long_name": "lower edge"})
        return self._dataset(labels, variables, gate_bin=gate_bins(), distance_bin=edges)


def _key_positions(reading: Reading, columns: int) -> torch.Tensor:
    """int [batch, column]: position of each key in its own sequence, -1 for padding and unwritten columns."""
    if reading.keys is None:
        return torch.arange(columns, device=reading.position.device).expand(reading.batch, -1)
    keys = reading.keys[:, :columns]
    position = torch.where(keys, keys.long().cumsum(1) - 1, -1)
    return torch.nn.functional.pad(position, (0, columns - keys.shape[1]), value=-1)


def _rows(
    query: torch.Tensor, key: torch.Tensor, scaling: float, key_position: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """Attention probabilities [batch, head, query, column], causal, padding left out, in float32.

    column  int [batch, query]: where each query stands among the keys
    """
    grouped = query.unflatten(1, (key.shape[1], -1)).float()
    scores = torch.einsum("bgrqd,bgsd->bgrqs", grouped, key).flatten(1, 2) * scaling
    columns = torch.arange(key.shape[2], device=key.device)
    seen = (key_position >= 0)[:, None, :] & (columns <= column[:, :, None])
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    return torch.nan_to_num(scores.softmax(dim=-1))  # a row that sees nothing is padding's


def _row_statistics(rows: torch.Tensor, position: torch.Tensor, key_position: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of each row [batch, head, query], and its mass by bin of distance [batch, head, query, bin]."""
    distance = (position[:, :, None] - key_position[:, None, :])[:, None]
    first = (key_position == 0)[:, None, None]
    edges = torch.tensor(DISTANCE_EDGES[1:], device=rows.device)
    bins = torch.bucketize(distance.clamp_min(0), edges, right=True).expand_as(rows)
    mass = rows.new_zeros(*rows.shape[:3], len(DISTANCE_EDGES)).scatter_add_(3, bins, rows)
    return {
        "entropy": torch.special.entr(rows).sum(dim=-1),
        "first_mass": (rows * first).sum(dim=-1),
        "previous_mass": mass[..., 1],
        "self_mass": mass[..., 0],
        "distance": (rows * distance).sum(dim=-1),
        "distance_mass": mass,
    }
