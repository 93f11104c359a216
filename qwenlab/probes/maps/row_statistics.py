"""One vocabulary for both kinds of mixer: what is said of a row of weights, softmax probabilities or implicit ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from qwenlab.capture.tokens import PADDING, TokenBatch, TokenSample, key_positions
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
    """Some rows of a map, and where in their sequences they stand.

    rows    which rows, and what each may look at
    by_key  float [batch, query, key, 3]: 1; tokens from the query back to the key; 1 where the key came right after an
            earlier occurrence of the query's token
    even    float [batch, query]: the share of one key among all that the query may look at
    again   float [batch, query]: the share of those that came right after such an occurrence
    """

    rows: AttentionRows
    by_key: torch.Tensor
    even: torch.Tensor
    again: torch.Tensor

    @property
    def columns(self) -> int:
        """Keys of a row, those that it may not look at included."""
        return self.by_key.shape[2]

    @staticmethod
    def of(reading: TokenBatch, sample: TokenSample, columns: int, tokens: torch.Tensor | None) -> RowBlock:
        """The sampled rows over so many columns, whose tokens are [batch, column]; None where those are not known."""
        rows = AttentionRows.of(reading, columns, sample)
        distance, seen = rows.distance[:, 0], rows.seen[:, 0]
        ones = torch.ones_like(distance)
        again = 0 * ones if tokens is None else _after_the_same(reading, sample, columns, tokens, rows).to(ones.dtype)
        even = 1 / seen.sum(dim=-1).clamp_min(1)
        return RowBlock(rows, torch.stack([ones, distance, again], dim=-1), even, again.sum(dim=-1) * even)


def _after_the_same(
    reading: TokenBatch, sample: TokenSample, columns: int, tokens: torch.Tensor, rows: AttentionRows
) -> torch.Tensor:
    """bool [batch, query, key]: keys s before the query whose own predecessor is the same token as the query."""
    real = key_positions(reading, columns) >= 0
    number = torch.arange(columns, device=tokens.device)
    newest = torch.where(real, number, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(newest[:, :-1], (1, 0), value=-1)  # column of the real token before each
    held = torch.nn.functional.pad(tokens, (0, max(0, columns - tokens.shape[1])), value=-1)
    follows = torch.where(before >= 0, held[:, :columns].gather(1, before.clamp_min(0)), -1)
    query = held.gather(1, reading.past + sample.columns)
    same = query[:, :, None] == follows[:, None, :]
    return same & rows.seen[:, 0] & (rows.distance[:, 0] > 0)


def row_statistics(weight: torch.Tensor, value_norm: torch.Tensor, where: RowBlock) -> dict[str, torch.Tensor]:
    """Statistics of each row [batch, query, head], and its shares by bin of distance [batch, query, head, bin].

    weight      [batch, head, query, key], signed, 0 where a query may not look
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
    mass = size / shared.transpose(1, 2)[..., None]  # a row of one weight has the entropy 0, not a rounding's
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


def sampled_at(reading: TokenBatch, positions: torch.Tensor) -> TokenSample:
    """The tokens at these positions [slot], in rising order; a slot whose token is not in this reading is padding."""
    wanted = positions.expand(reading.batch, -1).contiguous()
    rising = torch.where(reading.real, reading.position, -1).cummax(dim=1).values
    columns = torch.searchsorted(rising, wanted).clamp_max(reading.width - 1)
    found = (reading.position.gather(1, columns) == wanted) & reading.real.gather(1, columns)
    return restricted(reading, columns, found)


def restricted(reading: TokenBatch, columns: torch.Tensor, real: torch.Tensor) -> TokenSample:
    """The tokens at these columns [batch, slot], those that are not `real` as padding."""
    position, row, group = (each.gather(1, columns) for each in (reading.position, reading.row, reading.group))
    row, group = (torch.where(real, each, PADDING) for each in (row, group))
    few = replace(reading, real=real, position=position, row=row, group=group, keys=None, whole=False)
    begins = torch.arange(reading.batch, device=columns.device)[:, None] * reading.width
    return TokenSample(columns, (begins + columns).flatten(), few)
