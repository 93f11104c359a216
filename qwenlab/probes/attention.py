"""The attention probe: entropy, distance and sink of each softmax-attention head, and openness of its output gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import xarray as xr

from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.layout import head_counts
from qwenlab.capture.tokens import NEVER, TokenBatch, TokenSample, key_positions
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.probes.accumulators import Histogram, LayerSlice, Sums, counted
from qwenlab.probes.base import GROUPED, Probe, Reduced, summed
from qwenlab.probes.bins import DISTANCE_EDGES, GATE_BINS

MAX_PROBABILITIES = 2**22
"""Attention probabilities in memory at a time (elements): those of a block of query positions, never all."""

_PER_HEAD = {
    "entropy": ("nat", "entropy of the attention row, summed over tokens"),
    "first_mass": ("1", "probability on the first token, summed over tokens"),
    "previous_mass": ("1", "probability on the token before, summed over tokens"),
    "self_mass": ("1", "probability on the query's own token, summed over tokens"),
    "distance": ("token", "mean distance of the row, summed over tokens"),
    "gate": ("1", "mean value of the output gate, sigmoid(gate) averaged over channels, summed over tokens"),
}


class Attention(Probe):
    """Entropy, sink, distance and output gate of every head of the softmax-attention layers.

    The probabilities are recomputed from the rotated queries and keys, block by block, for a sample of each sequence's
    tokens; the model still runs its own attention kernel. For a query at position t with probabilities p over keys
    s <= t:

    entropy        -sum_s p ln p, in nats
    first mass     p on the sequence's first token (the usual sink); previous mass p on t - 1; self mass p on t
    distance       sum_s p (t - s), in tokens, and the mass by distance
    gate openness  mean over channels of sigmoid(gate); not measured where attention has no output gate (olmo_hybrid)

    layers  only these layers
    every   measure one token per block of this many (chosen by `sampled_steps.drawn`); 1 measures all
    """

    name = "attention"
    kind = ATTENTION
    changing = ("_sums", "_gates")

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 64) -> None:
        super().__init__(layers=layers, every=every)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self.gated = decoder.family.attention.gate  # whether the attention layers of this model have an output gate
        self._heads_per_layer, _ = head_counts(decoder, self.layers[0])
        self._sums = Sums(len(self.layers))
        self._gates = Histogram(len(self.layers), GATE_BINS)

    def sites(self, layer: int) -> Iterable[str]:
        return ("mixer.attention", "mixer.gate") if self.gated else ("mixer.attention",)

    def sampled_sites(self, layer: int) -> Iterable[str]:
        return self.sites(layer)

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        """Return openness of the gate and statistics of the attention row of every sampled token."""
        call, gate = captured["mixer.attention"], captured.get("mixer.gate")
        assert isinstance(call, AttentionCall)
        sample = tokens.sample(self.every)
        slots, columns = sample.columns.shape[1], call.key.shape[2]
        if not slots:
            return None
        gates: Reduced = {}
        if isinstance(gate, torch.Tensor):
            gates["gate"] = torch.sigmoid(sample.of(gate)).mean(dim=-1, dtype=torch.float32)
        block = max(1, MAX_PROBABILITIES // (tokens.batch * call.query.shape[1] * columns))
        if slots <= block:
            rows = tokens.once((AttentionRows, self.every, columns), lambda: AttentionRows.of(tokens, columns, sample))
            return gates | _row_statistics(*probabilities(call, rows), rows)
        place = self.layers.index(layer)
        for start in range(0, slots, block):
            slots_of = slice(start, start + block)
            cut = sample.part(slots_of)
            rows = AttentionRows.of(tokens, columns, cut)
            values = {name: value[:, slots_of] for name, value in gates.items()}
            values |= _row_statistics(*probabilities(call, rows), rows)
            self._add(slice(place, place + 1), {name: value[None] for name, value in values.items()}, cut.tokens)
        return None

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        self._add(where, reduced, tokens.sample(self.every).tokens)

    def _add(self, where: LayerSlice, values: Reduced, sampled: TokenBatch) -> None:
        self._sums.add(where, sampled, tokens=torch.ones_like(values["entropy"][..., 0]), **values)
        if self.gated:
            self._gates.add(where, sampled, values["gate"] * GATE_BINS)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count, heads = len(labels), self._heads_per_layer
        table = {name: about for name, about in _PER_HEAD.items() if self.gated or name != "gate"}
        variables = summed(table, (*GROUPED, "head"), lambda name: self._sums.array(name, count, heads))
        tokens = counted(self._sums.array("tokens", count))
        mass = self._sums.array("distance_mass", count, heads, len(DISTANCE_EDGES)).sum(axis=1)
        by_head = ("label", "layer", "head")
        variables |= {
            "tokens": (GROUPED, tokens, "token", "tokens measured, each with its row"),
            "distance_mass": ((*by_head, "distance_bin"), mass, "1", "attention mass by distance, summed over tokens"),
        }
        if self.gated:
            gates, about = self._gates.array(count, heads), "tokens by mean value of the output gate"
            variables["gate_hist"] = ((*by_head, "gate_bin"), gates, "token", about)
        return self.build_dataset(labels, variables)


@dataclass(frozen=True)
class AttentionRows:
    """The rows of the attention matrix that are measured, one per query."""

    sample: TokenSample  # [batch, query]
    visible: torch.Tensor  # bool [batch, 1, query, key]: keys that it may attend to
    distance: torch.Tensor  # float [batch, 1, query, key]: tokens from it back to each key
    first: torch.Tensor  # int [batch]: column of the sequence's first token
    edges: torch.Tensor  # int [batch, 1, query, bin + 1]: number of keys at least as far away as each bin's lower edge

    @staticmethod
    def of(tokens: TokenBatch, columns: int, sample: TokenSample) -> AttentionRows:
        """Return the rows of the sampled tokens over the first `columns` keys."""
        query, position = sample.columns, sample.tokens.position
        key_position = key_positions(tokens, columns)
        number = torch.arange(columns, device=query.device)
        visible = (key_position >= 0)[:, None, :] & (number <= (tokens.past + query)[:, :, None])
        distance = (position[:, :, None] - key_position[:, None, :]).float()
        # Positions never decrease along a row: keys at distance d or more are those before position - d + 1.
        rising = key_position.cummax(dim=1).values.contiguous()
        beyond = (position[:, :, None] - distance_edges(query.device)).flatten(1)
        edges = torch.searchsorted(rising, beyond.contiguous(), right=True).unflatten(1, (*position.shape[1:], -1))
        first = (key_position == 0).int().argmax(dim=1)
        return AttentionRows(sample, visible[:, None], distance[:, None], first, edges[:, None])


def distance_edges(device: torch.device) -> torch.Tensor:
    """Return int [bin + 1]: `DISTANCE_EDGES` and `NEVER`, made on the device, which a copy from the host would stop."""
    octave = 2 ** torch.arange(2, 26, device=device)
    steps = torch.stack([octave, octave + octave // 2], dim=1).flatten()
    last = torch.cat([torch.full((1,), edge, device=device) for edge in (2**26, NEVER)])
    return torch.cat([torch.arange(4, device=device), steps, last])


def probabilities(call: AttentionCall, rows: AttentionRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities [batch, head, query, key] in float32, and their entropy [batch, head, query] in nats."""
    heads, channels = call.query.shape[1], call.query.shape[3]
    column = rows.sample.columns_among(call.query.shape[2])[:, None, :, None]
    query = call.query.gather(2, column.expand(-1, heads, -1, channels)).float()
    key = call.key.float()
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [batch, key head, head of it * query, channel]
    scores = (grouped @ key.transpose(2, 3)).unflatten(2, (-1, column.shape[2])).flatten(1, 2) * call.scaling
    visible = rows.visible
    if call.visible is not None:
        shape = (len(query), -1, -1, scores.shape[3])
        own = column.expand(-1, call.visible.shape[1], -1, scores.shape[3])
        visible = visible & call.visible[..., : scores.shape[3]].expand(shape).gather(2, own)
    scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
    probability = scores.softmax(dim=-1)
    # -sum p ln p with ln p = score - ln sum exp(score); the largest score and the largest p give that sum.
    top, most = scores.amax(dim=-1), probability.amax(dim=-1)
    entropy = top - most.log() - torch.linalg.vecdot(probability, scores)
    return probability, entropy.clamp_min(0)


def _row_statistics(probability: torch.Tensor, entropy: torch.Tensor, rows: AttentionRows) -> dict[str, torch.Tensor]:
    """Return statistics of each row [batch, query, head], and mass by bin of distance [batch, query, head, bin]."""
    heads = probability.shape[1]
    # Mass at a distance of d or more, for every edge d: running sums from the left.
    running = torch.nn.functional.pad(probability.cumsum(dim=-1), (1, 0))
    beyond = running.gather(3, rows.edges.expand(-1, heads, -1, -1))
    mass = (beyond[..., :-1] - beyond[..., 1:]).clamp_min(0)
    first = rows.first[:, None, None, None].expand(*probability.shape[:3], 1)
    values = {
        "entropy": entropy,
        "first_mass": probability.gather(3, first)[..., 0],
        "previous_mass": mass[..., 1],
        "self_mass": mass[..., 0],
        "distance": torch.linalg.vecdot(probability, rows.distance),
        "distance_mass": mass,
    }
    return {name: value.transpose(1, 2) for name, value in values.items()}
