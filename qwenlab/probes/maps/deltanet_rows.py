"""Rows of the implicit attention of one DeltaNet layer, across calls, checked against the kernel's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import normalised
from qwenlab.capture.tokens import TokenBatch, TokenSample
from qwenlab.probes.maps.base import MapRows, selected
from qwenlab.probes.maps.delta_rule_weights import Bounds, DeltaRuleWeights
from qwenlab.probes.maps.row_statistics import RowBlock

OUTPUT_FLOOR = 0.01
"""Smallest output norm that errors are relative to, over the norm read by a query equal to its own token's key."""


@dataclass(frozen=True)
class MeasuredHeads:
    """Indices of the measured heads."""

    value: torch.Tensor  # int [head]: index of the value head
    key: torch.Tensor  # int [head]: index of the key head that it shares with others
    keys: torch.Tensor  # int [key head]: the key heads that are needed, each once
    place: torch.Tensor  # int [head]: index of each head's key head among `keys`

    @staticmethod
    def of(heads: Sequence[int], group: int, device: torch.device) -> MeasuredHeads:
        """Return the indices of these value heads; `group` of them share a key head."""
        value = torch.tensor(heads, device=device)
        return MeasuredHeads(value, value // group, *(value // group).unique(return_inverse=True))


@dataclass(frozen=True)
class EarlierTokens:
    """Tokens of earlier calls, as later calls need them, for the measured heads."""

    key: torch.Tensor  # [batch, column, key head, channel], as passed to the kernel
    beta: torch.Tensor  # [batch, column, head], 0 for padding
    g: torch.Tensor  # the same
    value_norm: torch.Tensor  # [batch, column, head]
    begin: int  # number of columns before the first of these

    @property
    def columns(self) -> int:
        """Number of tokens of each sequence."""
        return self.g.shape[1]

    @staticmethod
    def of(call: DeltaRuleCall, heads: MeasuredHeads, tokens: TokenBatch) -> EarlierTokens:
        """Return the tokens of one call. Padding leaves the state unchanged (alpha 1, beta 0)."""
        key = tokens.masked(call.key.index_select(2, heads.keys))
        value, beta, g = (tokens.masked(each.index_select(2, heads.value)) for each in (call.value, call.beta, call.g))
        norm = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float32)
        return EarlierTokens(key, beta.float(), g.float(), norm, tokens.past)

    def extended(self, later: EarlierTokens) -> EarlierTokens:
        """Return these tokens followed by those of a later call."""
        names = ("key", "beta", "g", "value_norm")
        joined = {name: torch.cat([getattr(self, name), getattr(later, name)], dim=1) for name in names}
        return EarlierTokens(**joined, begin=self.begin)


@dataclass
class DeltaNetMapRows(MapRows):
    """The rows of a DeltaNet layer: `call` of this pass, and the `known` tokens, `past` of them before this pass.

    With `without_removal` each row is also computed without key removal, to measure the error of its output.
    """

    call: DeltaRuleCall
    known: EarlierTokens
    measured: MeasuredHeads
    past: int
    gate: torch.Tensor | None
    without_removal: bool = False

    def __post_init__(self) -> None:
        self.heads, self.columns = self.measured.value, self.known.begin + self.known.columns
        self._prepared: tuple[slice, DeltaRuleWeights] | None = None

    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return implicit weights, 0 in unknown columns, and the squared errors of the outputs that they give."""
        query = self.call.query
        assert query is not None
        unit = normalised(selected(query, sample, self.measured.key[heads])) * query.shape[-1] ** -0.5
        column = sample.columns + self.past
        queries = (unit.transpose(1, 2), column, [bound + self.past for bound in bounds])
        weight, of_state = self._weights(heads).rows(*queries)
        out, size = self._kernel_output(sample, heads)
        checks = {"gap_square": (self._output(weight, of_state, heads) - out).square().sum(dim=-1), "out_square": size}
        if self.without_removal:
            other = self._output(*self._weights(heads).rows(*queries, removal=False), heads)
            checks["without_removal_gap_square"] = (other - out).square().sum(dim=-1)
        checks = {name: value.transpose(1, 2) for name, value in checks.items()}
        return torch.nn.functional.pad(weight, (self.known.begin, where.columns - self.columns)), checks

    def value_norm(self, heads: slice) -> torch.Tensor:
        return torch.nn.functional.pad(self.known.value_norm[:, :, heads].transpose(1, 2), (self.known.begin, 0))

    def _weights(self, heads: slice) -> DeltaRuleWeights:
        if self._prepared is None or self._prepared[0] != heads:
            known = self.known
            key = normalised(known.key.index_select(2, self.measured.place[heads])).transpose(1, 2)
            beta, g = (each[:, :, heads].transpose(1, 2) for each in (known.beta, known.g))
            self._prepared = heads, DeltaRuleWeights(key, beta, g, self.past)
        return self._prepared[1]

    def _output(self, weight: torch.Tensor, of_state: torch.Tensor, heads: slice) -> torch.Tensor:
        """Return the output [batch, head, row, channel] of these weights, including that of the state before."""
        call, which = self.call, self.measured.value[heads]
        output = weight[..., self.past :] @ call.value.index_select(2, which).transpose(1, 2).float()
        initial, _ = call.states(which)
        return output if initial is None else output + of_state @ initial.float()

    def _kernel_output(self, sample: TokenSample, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the kernel's output [batch, head, row, channel], and its squared norm or that of the floor."""
        call, which = self.call, self.measured.value[heads]
        assert call.out is not None
        out = selected(call.out, sample, which).transpose(1, 2).float()
        own = torch.linalg.vector_norm(selected(call.value, sample, which).float(), dim=-1).transpose(1, 2)
        least = OUTPUT_FLOOR * call.key.shape[-1] ** -0.5 * own
        return out, torch.maximum(torch.linalg.vector_norm(out, dim=-1), least).square()
