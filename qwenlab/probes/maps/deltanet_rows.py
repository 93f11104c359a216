"""One DeltaNet layer's weights over its sequences: what is kept from call to call, and rows held to the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import normalised
from qwenlab.capture.tokens import TokenBatch, TokenSample
from qwenlab.probes.maps.delta_rule_weights import Bounds, DeltaRuleWeights
from qwenlab.probes.maps.row_statistics import RowBlock

FLOOR = 0.01
"""What a query reads that matches its own token's key, times this, is the least output that errors are relative to."""


@dataclass(frozen=True)
class MeasuredHeads:
    """Which heads are measured.

    value, key  int [head]: number of the value head, and of the key head that it shares with others
    keys        int [key head]: the key heads that are needed, each once
    place       int [head]: where among those a head's own is
    """

    value: torch.Tensor
    key: torch.Tensor
    keys: torch.Tensor
    place: torch.Tensor

    @staticmethod
    def of(heads: Sequence[int], group: int, device: torch.device) -> MeasuredHeads:
        """These value heads, of which so many share a key head."""
        key = [head // group for head in heads]
        keys = sorted(set(key))
        lists = (heads, key, keys, [keys.index(each) for each in key])
        return MeasuredHeads(*(torch.tensor(each, device=device) for each in lists))


@dataclass(frozen=True)
class EarlierTokens:
    """What later calls need of the tokens read so far, of the heads that are measured.

    key         [batch, column, key head, channel], as the kernel got it
    beta, g     [batch, column, head], 0 for padding;  value_norm  [batch, column, head]
    begin       columns before the first of these
    """

    key: torch.Tensor
    beta: torch.Tensor
    g: torch.Tensor
    value_norm: torch.Tensor
    begin: int

    @property
    def columns(self) -> int:
        """How many tokens a sequence has."""
        return self.g.shape[1]

    @staticmethod
    def of(call: DeltaRuleCall, heads: MeasuredHeads, reading: TokenBatch) -> EarlierTokens:
        """Those of one call. Padding is passed over (alpha 1, beta 0)."""
        key = reading.masked(call.key.index_select(2, heads.keys))
        value, beta, g = (reading.masked(each.index_select(2, heads.value)) for each in (call.value, call.beta, call.g))
        norm = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float32)
        return EarlierTokens(key, beta.float(), g.float(), norm, reading.past)

    def and_then(self, later: EarlierTokens) -> EarlierTokens:
        """These and the tokens of a later call."""
        names = ("key", "beta", "g", "value_norm")
        joined = {name: torch.cat([getattr(self, name), getattr(later, name)], dim=1) for name in names}
        return EarlierTokens(**joined, begin=self.begin)


class DeltaNetMapRows:
    """`Weighing` of a DeltaNet layer: `call` of this pass, and `kept` with `past` columns before it.

    Asked for it, each row is also made without the removal of keys, to say how far off its output is.
    """

    def __init__(
        self,
        call: DeltaRuleCall,
        kept: EarlierTokens,
        heads: MeasuredHeads,
        past: int,
        gate: torch.Tensor | None,
        without_removal: bool = False,
    ) -> None:
        self._without_removal = without_removal
        self.columns, self.begin = kept.begin + kept.columns, kept.begin
        self._call, self._kept, self._heads, self._past, self._gate = call, kept, heads, past, gate
        self._ready: tuple[slice, DeltaRuleWeights] | None = None

    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Implicit weights, 0 in columns that are not known; and how well they make the kernel's output."""
        query = self._call.query
        assert query is not None
        unit = normalised(_taken(query, sample, self._heads.key[heads])) * query.shape[-1] ** -0.5
        column = sample.columns + self._past
        asked = (unit.transpose(1, 2), column, [bound + self._past for bound in bounds])
        weight, entering = self._unrolled(heads).rows(*asked)
        out, size = self._of_the_kernel(sample, heads)
        checked = {"gap_square": (self._made(weight, entering, heads) - out).square().sum(dim=-1), "out_square": size}
        if self._without_removal:
            other = self._made(*self._unrolled(heads).rows(*asked, removal=False), heads)
            checked["without_removal_gap_square"] = (other - out).square().sum(dim=-1)
        checked = {name: each.transpose(1, 2) for name, each in checked.items()}
        return torch.nn.functional.pad(weight, (self.begin, where.columns - self.columns)), checked

    def value_norm(self, heads: slice) -> torch.Tensor:
        """[batch, head, column]"""
        return torch.nn.functional.pad(self._kept.value_norm[:, :, heads].transpose(1, 2), (self.begin, 0))

    def openness(self, sample: TokenSample) -> torch.Tensor | None:
        """[batch, row, head], where the gate was noted."""
        if self._gate is None:
            return None
        return torch.sigmoid(_taken(self._gate, sample, self._heads.value).float()).mean(dim=-1)

    def _unrolled(self, heads: slice) -> DeltaRuleWeights:
        if self._ready is None or self._ready[0] != heads:
            kept = self._kept
            key = normalised(kept.key.index_select(2, self._heads.place[heads])).transpose(1, 2)
            beta, g = (each[:, :, heads].transpose(1, 2) for each in (kept.beta, kept.g))
            self._ready = heads, DeltaRuleWeights(key, beta, g, self._past)
        return self._ready[1]

    def _made(self, weight: torch.Tensor, entering: torch.Tensor, heads: slice) -> torch.Tensor:
        """The output [batch, head, row, channel] that weights make of this call's values and of the state before."""
        call, which = self._call, self._heads.value[heads]
        made = weight[..., self._past :] @ call.value.index_select(2, which).transpose(1, 2).float()
        return made if call.before is None else made + entering @ call.before[:, heads].float()

    def _of_the_kernel(self, sample: TokenSample, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The output that the kernel returned [batch, head, row, channel], and its squared norm or the floor's."""
        call, which = self._call, self._heads.value[heads]
        assert call.out is not None
        out = _taken(call.out, sample, which).transpose(1, 2).float()
        own = torch.linalg.vector_norm(_taken(call.value, sample, which).float(), dim=-1).transpose(1, 2)
        least = FLOOR * call.key.shape[-1] ** -0.5 * own
        return out, torch.maximum(torch.linalg.vector_norm(out, dim=-1), least).square()


def _taken(values: torch.Tensor, sample: TokenSample, heads: torch.Tensor) -> torch.Tensor:
    """[batch, row, head, channel] of values [batch, position, head, channel]: of sampled tokens and some heads."""
    columns = sample.columns[:, :, None, None].expand(-1, -1, *values.shape[2:])
    return values.gather(1, columns).index_select(2, heads)
