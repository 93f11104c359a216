"""Probe of softmax attention maps, with the same statistics as implicit attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.buffers import Captured
from qwenlab.capture.tokens import TokenBatch, TokenSample
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.probes.attention import probabilities
from qwenlab.probes.maps.base import MapProbe, MapRows, selected
from qwenlab.probes.maps.delta_rule_weights import Bounds
from qwenlab.probes.maps.row_statistics import RowBlock


class SoftmaxAttention(MapProbe):
    """Maps of the softmax-attention layers, by head: the weight of a token's value is its probability p(t, s).

    Statistics of a sample of rows, and maps on request, as `ImplicitAttention` measures them in DeltaNet layers. To
    show the effect of the output gate on the sink: the contribution of token s to the output at t has the norm
    p(t, s) ||v_s|| before the gate, and p(t, s) ||sigmoid(gate_t) * v_s|| after it. Both are summed over all tokens s,
    and for the first token alone. A family without an output gate (olmo_hybrid) has none of these.

    layers, heads, every, queries, block  as in `MapProbe`
    """

    name = "softmax_attention"
    kind = ATTENTION
    gate_statistics: ClassVar[dict[str, tuple[str, str]]] = {
        "gated_output": ("1", "sum of |weight| x ||gate x value||, summed over tokens"),
        "gated_output_first": ("1", "|weight| x ||gate x value|| of the first token, summed over tokens"),
        "mean_gate": ("1", "mean value of the output gate, summed over tokens"),
    }
    omitted = ("negative",)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self.extra = self.gate_statistics if decoder.family.attention.gate else {}

    def sites(self, layer: int) -> Iterable[str]:
        return ("mixer.attention", "mixer.attention.value", *(["mixer.gate"] if self.extra else ()))

    def map_rows(self, layer: int, captured: Captured, tokens: TokenBatch) -> _Probabilities:
        call, gate = captured["mixer.attention"], captured.get("mixer.gate")
        assert isinstance(call, AttentionCall)
        assert gate is None or isinstance(gate, torch.Tensor)
        heads = torch.tensor(self.heads, device=call.device)
        return _Probabilities(call, gate, heads, heads // (call.query.shape[1] // call.key.shape[1]), call.key.shape[2])


@dataclass
class _Probabilities(MapRows):
    """The rows of an attention layer: `heads` are query heads, and `key_heads` the key head of each."""

    call: AttentionCall
    gate: torch.Tensor | None
    heads: torch.Tensor
    key_heads: torch.Tensor
    columns: int

    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        query = self.call.query.index_select(1, self.heads[heads])
        key, value = (self._select(each, heads)[:, :, : where.columns] for each in (self.call.key, self.call.value))
        visible = self.call.visible
        if visible is not None and visible.shape[1] > 1:
            visible = visible.index_select(1, self.heads[heads])
        weight, _ = probabilities(AttentionCall(query, key, self.call.scaling, visible=visible), where.rows)
        if self.gate is None:
            return weight, {}
        gate = selected(self.gate, sample, self.heads[heads])
        gate = torch.sigmoid(gate.float()).transpose(1, 2)  # [batch, head, row, channel]
        gated = weight * (gate.square() @ value.float().square().transpose(2, 3)).sqrt()
        first = where.rows.first[:, None, None, None].expand(*gated.shape[:3], 1)
        extra = {"gated_output": gated.sum(dim=-1), "gated_output_first": gated.gather(3, first)[..., 0]}
        extra["mean_gate"] = gate.mean(dim=-1)
        return weight, {name: value.transpose(1, 2) for name, value in extra.items()}

    def value_norm(self, heads: slice) -> torch.Tensor:
        return torch.linalg.vector_norm(self._select(self.call.value, heads).float(), dim=-1)

    def _select(self, values: torch.Tensor | None, heads: slice) -> torch.Tensor:
        assert values is not None
        return values.index_select(1, self.key_heads[heads])
