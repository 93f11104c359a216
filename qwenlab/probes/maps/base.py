"""Base class for the two map probes: select rows, compute their statistics, and store whole maps on request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.tokens import PADDING, TokenBatch, TokenSample, key_positions
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import Sums, counted
from qwenlab.probes.base import GROUPED, HeadProbe, Variable, summed
from qwenlab.probes.bins import DISTANCE_EDGES
from qwenlab.probes.maps.delta_rule_weights import Bounds
from qwenlab.probes.maps.row_statistics import STATISTICS, RowBlock, row_statistics
from qwenlab.probes.maps.stored import BlockMeans, MapStore, StoredRows, WholeMaps, check_size

MAX_WEIGHTS, ROWS = 2**21, 256
"""Weights in memory at a time (elements), and the number of rows that a group of heads must allow at once."""


class MapRows(ABC):
    """One layer's weights over the columns of its sequences, computed by rows and heads."""

    columns: int  # number of keys
    heads: torch.Tensor  # int [head]: indices of the measured heads
    gate: torch.Tensor | None  # logits of the output gate [batch, position, head, channel]; None if not captured

    @abstractmethod
    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return weights [batch, head, row, column] over the columns of `where`, and extra statistics
        [batch, row, head]."""

    @abstractmethod
    def value_norm(self, heads: slice) -> torch.Tensor:
        """Return norms of the values [batch, head, column]."""

    def openness(self, sample: TokenSample) -> torch.Tensor | None:
        """Return openness of the output gate [batch, row, head], sigmoid averaged over channels; None if not known."""
        return None if self.gate is None else torch.sigmoid(selected(self.gate, sample, self.heads).float()).mean(-1)


def selected(values: torch.Tensor, sample: TokenSample, heads: torch.Tensor) -> torch.Tensor:
    """Select sampled tokens and heads: [batch, row, head, channel] of values [batch, position, head, channel]."""
    columns = sample.columns[:, :, None, None].expand(-1, -1, *values.shape[2:])
    return values.gather(1, columns).index_select(2, heads)


class MapProbe(HeadProbe):
    """Base class for probes of the weights with which earlier tokens enter a head's output.

    It always measures statistics of the rows of a sample of tokens, by head (`row_statistics.STATISTICS`, and |weight|
    by distance). With `queries` or `block` it also stores the weights themselves, text by text.

    Rows are computed a block at a time: besides the stored maps, it needs at most about 300 MiB of memory.

    heads    only these heads of each layer
    every    measure the row of one token per block of this many (chosen by `sampled_steps.drawn`); 1 measures all
    queries  store whole rows: of the tokens at these positions of each text, or "all", for texts up to 2,048 tokens
    block    store means over blocks of this many queries and keys, up to 2,048 blocks per text; measures every row
    """

    extra: dict[str, tuple[str, str]] = {}  # noqa: RUF012  further statistics: units and meaning
    settings = ("queries", "block")
    omitted: ClassVar[tuple[str, ...]] = ()  # statistics that have no meaning for this kind of mixer

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 64,
        queries: Iterable[int] | Literal["all"] | None = None,
        block: int | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=every)
        name = type(self).__name__
        self.queries = _positions(name, queries)
        self.block = block
        if block is not None and (queries is not None or not isinstance(block, int) or block < 2):
            raise BadArgument(
                f"{name}(queries={queries!r}, block={block!r}): "
                "give either the rows to store, or the side of a block in tokens, 2 or more."
            )

    @abstractmethod
    def map_rows(self, layer: int, captured: Captured, tokens: TokenBatch) -> MapRows:
        """Return the weights of one layer."""

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self._sums, self._checks = Sums(len(self.layers)), Sums(len(self.layers))
        self._prefix_unknown = False
        self._store: MapStore | None = None
        if self.queries is not None or self.block:
            count = len(self.layers)
            self._store = BlockMeans(count, len(self.heads), self.block) if self.block else WholeMaps(count)

    def on_tokens(self, tokens: TokenBatch) -> None:
        """Carry the token ids of all columns of these sequences; None if earlier ids are not known."""
        name = (id(self), "tokens")
        earlier: torch.Tensor | None = tokens.carry.get(name)
        ids = tokens.ids
        if ids is not None and tokens.past:
            known = earlier is not None and earlier.shape[1] == tokens.past
            ids = torch.cat([earlier, ids], dim=1) if known and earlier is not None else None
        tokens.carry[name] = ids

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> None:
        """Measure the sampled rows of one layer, and store the requested ones."""
        weights, place = self.map_rows(layer, captured, tokens), self.layers.index(layer)
        for cut, where, bounds in self._blocks(weights, tokens.sample(self.every), tokens, self.every):
            groups = []
            for heads in self._groups(weights, tokens):
                weight, extra = weights.rows(where, cut, heads, bounds)
                groups.append(row_statistics(weight, weights.value_norm(heads)[..., : where.columns], where) | extra)
            values = {name: torch.cat([group[name] for group in groups], dim=2) for name in groups[0]}
            self._add(place, values, cut, tokens)
        if self._store is not None:
            self._store_map(self._store, place, weights, tokens)

    def _blocks(
        self, weights: MapRows, sample: TokenSample, tokens: TokenBatch, every: int
    ) -> Iterable[tuple[TokenSample, RowBlock, list[int]]]:
        """Iterate over the sampled rows in blocks that fit MAX_WEIGHTS."""
        slots = sample.columns.shape[1]
        ids = tokens.carry[id(self), "tokens"]
        ids = None if ids is None else ids.to(sample.columns.device)
        bounds = _bounds(sample, tokens, every)
        group = self._groups(weights, tokens)[0] if slots else slice(0, 1)
        rows = max(1, MAX_WEIGHTS // (tokens.batch * (group.stop - group.start) * weights.columns))
        for start in range(0, slots, rows):
            part = sample if rows >= slots else sample.part(slice(start, start + rows))
            here = bounds[start : start + rows]
            columns = min(weights.columns, tokens.past + here[-1] + 1)  # none of these rows attends beyond
            yield part, RowBlock.of(tokens, part, columns, ids), here

    def _groups(self, weights: MapRows, tokens: TokenBatch) -> list[slice]:
        """Return the groups of heads that are measured together, few enough for ROWS rows at once."""
        most = MAX_WEIGHTS // (tokens.batch * weights.columns * min(ROWS, tokens.width))
        together = min(len(self.heads), max(1, most))
        return [slice(start, min(start + together, len(self.heads))) for start in range(0, len(self.heads), together)]

    def _add(self, place: int, values: dict[str, torch.Tensor], cut: TokenSample, tokens: TokenBatch) -> None:
        """Add up statistics of rows whose text is known from its first token, and the checks of all rows."""
        at, sampled, even = slice(place, place + 1), cut.tokens, values["induction_even"][..., 0]
        checks = {name: values.pop(name)[None] for name in self.checks()}
        if checks:
            self._checks.add(at, sampled, **checks)
        if self._prefix_unknown:
            real = sampled.real & (tokens.first == 0)[:, None]
            row, group = (torch.where(real, each, PADDING) for each in (sampled.row, sampled.group))
            sampled = replace(sampled, real=real, row=row, group=group, whole=False)
        counts = {"tokens": torch.ones_like(even), "induction_rows": (even > 0).to(even.dtype)}
        self._sums.add(at, sampled, **{name: value[None] for name, value in (counts | values).items()})

    def checks(self) -> tuple[str, ...]:
        """Return the names of statistics that `check` needs, summed over all rows."""
        return ()

    def _store_map(self, store: MapStore, place: int, weights: MapRows, tokens: TokenBatch) -> None:
        check_size(type(self).__name__, tokens.past + tokens.width, self.queries == "all", self.block, store)
        every = 1 if self.queries == "all" or self.block else 0
        positions = None if every else torch.tensor(self.queries, device=tokens.real.device)
        chosen = tokens.sample(1) if positions is None else TokenSample.at(tokens, positions)
        position = key_positions(tokens, weights.columns)  # -1 beyond the columns written
        for cut, where, bounds in self._blocks(weights, chosen, tokens, every):
            real = cut.tokens.real & (tokens.first == 0)[:, None] if self._prefix_unknown else cut.tokens.real
            keys, openness = position[:, : where.columns], weights.openness(cut)
            for heads in self._groups(weights, tokens):
                weight, _ = weights.rows(where, cut, heads, bounds)
                gate = None if openness is None else openness[:, :, heads]
                store.add(StoredRows(place, heads, tokens.numbers, cut.tokens.position, real, weight, keys, gate))

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count, heads = len(labels), len(self.heads)
        by_head = (*GROUPED, "head")
        statistics = {name: value for name, value in STATISTICS.items() if name not in self.omitted} | self.extra
        variables = summed(statistics, by_head, lambda name: self._sums.array(name, count, heads))
        tokens, induction = (counted(self._sums.array(name, count)) for name in ("tokens", "induction_rows"))
        mass = self._sums.array("distance_mass", count, heads, len(DISTANCE_EDGES))
        variables |= {
            "tokens": (GROUPED, tokens, "token", "tokens measured, each with its row"),
            "induction_rows": (GROUPED, induction, "token", "rows with induction"),
            "distance_mass": ((*by_head, "distance_bin"), mass, "1", "shares by distance, summed over tokens"),
        }
        stored = {} if self._store is None else self._store.variables(heads)
        return self.build_dataset(labels, variables | self.extra_variables(count) | stored)

    def extra_variables(self, labels: int) -> dict[str, Variable]:
        """Return further variables of the Dataset."""
        return {}


def _positions(name: str, queries: Iterable[int] | str | None) -> list[int] | str | None:
    """Return sorted unique positions, "all" or None. Raises BadArgument for anything else."""
    if queries is None or queries == "all":
        return queries
    positions: Any = queries if isinstance(queries, str) else sorted(set(queries))
    if not positions or any(not isinstance(each, int) or each < 0 for each in positions):
        raise BadArgument(f"{name}(queries={positions!r}): give positions of tokens in their texts, or 'all'.")
    return positions


def _bounds(sample: TokenSample, tokens: TokenBatch, every: int) -> list[int]:
    """Return, per slot and in rising order, an upper bound of its token's column, without a sync with a GPU."""
    slots = sample.columns.shape[1]
    if sample.columns.device.type == "cpu":
        most = sample.columns.amax(dim=0).cummax(dim=0).values if slots else sample.columns[0]
        return [int(column) for column in most.tolist()]
    if tokens.whole and every:
        return [min(every * (slot + 2), tokens.width) for slot in range(slots)]
    return [tokens.width] * slots
