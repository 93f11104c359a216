"""Softmax attention maps, told in the words of implicit ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qwenlab.capture.buffers import AttentionCall, Captured, Part
from qwenlab.capture.tokens import TokenBatch, TokenSample
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.probes.attention import probabilities
from qwenlab.probes.maps.base import MapProbe
from qwenlab.probes.maps.delta_rule_weights import Bounds
from qwenlab.probes.maps.row_statistics import RowBlock


class SoftmaxAttention(MapProbe):
    """Maps of the softmax-attention layers, by head: the weight of a token's value is its probability p(t, s).

    Statistics of a sample of rows, and maps where asked for, as `ImplicitAttention` makes them of DeltaNet layers. What
    the output gate does to the sink: the contribution of token s to the output at t has the norm p(t, s) ||v_s||, and
    with the gate on p(t, s) ||sigmoid(gate_t) * v_s||. Kept are the sums of both, over all tokens and of the first.

    layers, heads, every, queries, block  as in `MapProbe`
    """

    name = "softmax_attention"
    reads = "a softmax-attention mixer"
    extra: ClassVar[dict[str, tuple[str, str]]] = {
        "gated_output": ("1", "sum of |weight| x ||gate x value||, summed over tokens"),
        "gated_output_first": ("1", "|weight| x ||gate x value|| of the first token, summed over tokens"),
        "mean_gate": ("1", "mean value of the output gate, summed over tokens"),
    }

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The softmax-attention layers."""
        return decoder.layers_of(ATTENTION)

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the attention function, and the output gate."""
        return (("mixer", "attention"), ("mixer", "gate"))

    def count_heads(self, layer: int) -> int:
        """Query heads."""
        return int(self.decoder.module.config.num_attention_heads)

    def hidden(self) -> tuple[str, ...]:
        """Probabilities are never negative."""
        return ("negative",)

    def weighing(self, layer: int, notes: Captured, reading: TokenBatch) -> _Probabilities:
        """The probabilities of one layer."""
        call, gate = notes["attention"], notes["gate"]
        assert isinstance(call, AttentionCall)
        assert isinstance(gate, torch.Tensor)
        heads = torch.tensor(self.heads, device=call.device)
        return _Probabilities(call, gate, heads, heads // (call.query.shape[1] // call.key.shape[1]), call.key.shape[2])


@dataclass
class _Probabilities:
    """`Weighing` of an attention layer: heads among those of the queries, key_heads [head] among those of the keys."""

    call: AttentionCall
    gate: torch.Tensor
    heads: torch.Tensor
    key_heads: torch.Tensor
    columns: int

    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Probabilities; and by row the contributions with the gate on, all and the first token's."""
        query = self.call.query.index_select(1, self.heads[heads])
        key, value = (self._of(held, heads)[:, :, : where.columns] for held in (self.call.key, self.call.value))
        seen = self.call.seen
        if seen is not None and seen.shape[1] > 1:
            seen = seen.index_select(1, self.heads[heads])
        weight, _ = probabilities(AttentionCall(query, key, self.call.scaling, seen=seen), where.rows)
        gate = torch.sigmoid(self._gate(sample)[:, :, heads].float()).transpose(1, 2)  # [batch, head, row, channel]
        gated = weight * (gate.square() @ value.float().square().transpose(2, 3)).sqrt()
        first = where.rows.first[:, None, None, None].expand(*gated.shape[:3], 1)
        found = {"gated_output": gated.sum(dim=-1), "gated_output_first": gated.gather(3, first)[..., 0]}
        found["mean_gate"] = gate.mean(dim=-1)
        return weight, {name: each.transpose(1, 2) for name, each in found.items()}

    def value_norm(self, heads: slice) -> torch.Tensor:
        """[batch, head, column]"""
        return torch.linalg.vector_norm(self._of(self.call.value, heads).float(), dim=-1)

    def openness(self, sample: TokenSample) -> torch.Tensor:
        """[batch, row, head]"""
        return torch.sigmoid(self._gate(sample).float()).mean(dim=-1)

    def _of(self, held: torch.Tensor | None, heads: slice) -> torch.Tensor:
        assert held is not None
        return held.index_select(1, self.key_heads[heads])

    def _gate(self, sample: TokenSample) -> torch.Tensor:
        """Logits of the output gate [batch, row, head, channel] of the sampled rows."""
        columns = sample.columns[:, :, None, None].expand(-1, -1, *self.gate.shape[2:])
        return self.gate.gather(1, columns).index_select(2, self.heads)
