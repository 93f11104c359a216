"""Statistics of a row of weights, the same for softmax probabilities and implicit attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwenlab.capture.tokens import TokenBatch, TokenSample, key_positions
from qwenlab.probes.attention import AttentionRows

STATISTICS = {
    "mass": ("1", "sum of |weight| over the row, summed over tokens"),
    "first_mass": ("1", "share of |weight| on the first token, summed over tokens"),
    "first_even": ("1", "the same share if all earlier tokens had equal weight, summed over tokens"),
    "previous_mass": ("1", "share of |weight| on the token before, summed over tokens"),
    "self_mass": ("1", "share of |weight| on the query's own token, summed over tokens"),
    "distance": ("token", "mean distance of |weight|, summed over tokens"),
    "entropy": ("nat", "entropy of |weight| as shares of the row, summed over tokens"),
    "negative": ("1", "share of |weight| that is negative, summed over tokens"),
    "induction": ("1", "share of |weight| right after earlier occurrences of the token, summed over rows with such"),
    "induction_even": ("1", "the same share if all earlier tokens had equal weight, summed over the same rows"),
    "output": ("1", "sum of |weight| x ||value||, summed over tokens"),
    "output_first": ("1", "|weight| x ||value|| of the first token, summed over tokens"),
}
"""Statistics of a row, by name: units and meaning."""


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a map, with their places in their sequences."""

    rows: AttentionRows  # the rows, and the keys visible to each
    by_key: torch.Tensor  # float [batch, query, key, 3]: 1; tokens back to the key; 1 where it is in `_after_the_same`
    even: torch.Tensor  # float [batch, query]: share of one key among all visible keys
    again: torch.Tensor  # float [batch, query]: share of the visible keys that are in `_after_the_same`

    @property
    def columns(self) -> int:
        """Number of keys of a row, visible or not."""
        return self.by_key.shape[2]

    @staticmethod
    def of(tokens: TokenBatch, sample: TokenSample, columns: int, ids: torch.Tensor | None) -> RowBlock:
        """Return the sampled rows over the first `columns` keys, whose ids are [batch, column]; None if not known."""
        rows = AttentionRows.of(tokens, columns, sample)
        distance, visible = rows.distance[:, 0], rows.visible[:, 0]
        ones = torch.ones_like(distance)
        again = 0 * ones if ids is None else _after_the_same(tokens, sample, columns, ids, rows).to(ones.dtype)
        even = 1 / visible.sum(dim=-1).clamp_min(1)
        return RowBlock(rows, torch.stack([ones, distance, again], dim=-1), even, again.sum(dim=-1) * even)


def _after_the_same(
    tokens: TokenBatch, sample: TokenSample, columns: int, ids: torch.Tensor, rows: AttentionRows
) -> torch.Tensor:
    """Return bool [batch, query, key]: keys before the query whose predecessor is the same token as the query."""
    real = key_positions(tokens, columns) >= 0
    number = torch.arange(columns, device=ids.device)
    newest = torch.where(real, number, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(newest[:, :-1], (1, 0), value=-1)  # column of the real token before each
    ids = torch.nn.functional.pad(ids, (0, max(0, columns - ids.shape[1])), value=-1)
    previous = torch.where(before >= 0, ids[:, :columns].gather(1, before.clamp_min(0)), -1)
    query = ids.gather(1, tokens.past + sample.columns)
    same = query[:, :, None] == previous[:, None, :]
    return same & rows.visible[:, 0] & (rows.distance[:, 0] > 0)


def row_statistics(weight: torch.Tensor, value_norm: torch.Tensor, where: RowBlock) -> dict[str, torch.Tensor]:
    """Return statistics of each row [batch, query, head], and shares by bin of distance [batch, query, head, bin].

    weight      [batch, head, query, key], signed, 0 for keys that are not visible
    value_norm  [batch, head, key]
    """
    rows, heads, size = where.rows, weight.shape[1], weight.abs()
    total, distance, again = (size.transpose(1, 2) @ where.by_key).unbind(dim=-1)  # [batch, query, head] each
    shared = total.clamp_min(torch.finfo(size.dtype).tiny)
    # Mass at a distance of d or more, for every edge d: running sums from the left.
    edges = rows.edges.expand(-1, heads, -1, -1)
    beyond = size.cumsum(dim=-1).gather(3, (edges - 1).clamp_min(0)).masked_fill_(edges == 0, 0).transpose(1, 2)
    by_distance = (beyond[..., :-1] - beyond[..., 1:]).clamp_min(0) / shared[..., None]
    first = rows.first[:, None, None, None].expand(*size.shape[:3], 1)
    on_first = size.gather(3, first)[..., 0].transpose(1, 2)
    mass = size / shared.transpose(1, 2)[..., None]  # so that the entropy of a row of one weight is exactly 0
    return {
        "mass": total,
        "first_mass": on_first / shared,
        "first_even": where.even[..., None].expand_as(total),
        "previous_mass": by_distance[..., 1],
        "self_mass": by_distance[..., 0],
        "distance": distance / shared,
        "entropy": -torch.special.xlogy(mass, mass).sum(dim=-1).transpose(1, 2),
        "negative": (total - weight.sum(dim=-1).transpose(1, 2)).clamp_min(0) / shared / 2,
        "induction": again / shared,
        "induction_even": where.again[..., None].expand_as(total),
        "output": (size @ value_norm[..., None])[..., 0].transpose(1, 2),
        "output_first": on_first * value_norm.gather(2, rows.first[:, None, None].expand(-1, heads, 1)).transpose(1, 2),
        "distance_mass": by_distance,
    }
