"""What the two probes of maps share: which rows they measure, what they say of them, and the maps that they keep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.tokens import PADDING, TokenBatch, TokenSample, key_positions
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import Sums, counted
from qwenlab.probes.attention import DISTANCE_EDGES
from qwenlab.probes.base import Probe, Variable
from qwenlab.probes.maps.delta_rule_weights import Bounds
from qwenlab.probes.maps.row_statistics import STATISTICS, RowBlock, row_statistics, sampled_at
from qwenlab.probes.maps.stored import BlockMeans, MapStore, StoredRows, WholeMaps, check_size

BLOCK, ROWS = 2**21, 256
"""Weights held at a time (elements), and rows that are worked out together where so many are measured."""


class MapRows(Protocol):
    """One layer's weights over the columns of its sequences, asked for by rows and heads."""

    columns: int  # of the keys

    def rows(
        self, where: RowBlock, sample: TokenSample, heads: slice, bounds: Bounds
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Weights [batch, head, row, column] over the columns of `where`, and more statistics [batch, row, head]."""

    def value_norm(self, heads: slice) -> torch.Tensor:
        """[batch, head, column]"""

    def openness(self, sample: TokenSample) -> torch.Tensor | None:
        """[batch, row, head]: of the output gate, sigmoid averaged over channels; None where it is not known."""


class MapProbe(Probe):
    """A probe of the weights with which earlier tokens enter a head's output, of one kind of mixer.

    Beside what is kept, at most about 300 MiB are held at a time: rows are worked out a block at a time, never all.

    Always: statistics of the rows of a sample of tokens, by head (`mass.STATISTICS`, and |weight| by distance). Where
    `queries` or `block` says so, weights themselves, text by text.

    heads    only these heads of each layer
    every    measure the row of one token of every so many (`reading.drawn` says which); 1 measures all
    queries  keep whole rows: of the tokens at these positions of each text, or "all", of texts up to 2,048 tokens
    block    keep means over blocks of so many queries and keys, up to 2,048 blocks a text, which measures every row
    """

    extra: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 64,
        queries: Iterable[int] | Literal["all"] | None = None,
        block: int | None = None,
    ) -> None:
        super().__init__(layers=layers, every=every)
        self._chosen_heads = None if heads is None else sorted(set(heads))
        self.queries: Sequence[int] | str | None = queries if isinstance(queries, str) else _positions(self, queries)
        self.block = block
        name = type(self).__name__
        if isinstance(queries, str) and queries != "all":
            raise BadArgument(f"{name}(queries={queries!r}): give positions of tokens in their texts, or 'all'.")
        if block is not None and (queries is not None or not isinstance(block, int) or block < 2):
            raise BadArgument(
                f"{name}(queries={queries!r}, block={block!r}): "
                "give either rows to keep, or the side of a block in tokens, 2 or more."
            )
        self.heads: list[int] = []

    @abstractmethod
    def count_heads(self, layer: int) -> int:
        """Heads of this layer."""

    @abstractmethod
    def weighing(self, layer: int, notes: Captured, reading: TokenBatch) -> MapRows:
        """The weights of one layer."""

    def start(self, decoder: Decoder) -> None:
        """Empty sums and maps for these layers. Raises BadArgument for heads that the layers do not have."""
        super().start(decoder)
        total = self.count_heads(self.layers[0])
        self.heads = list(range(total)) if self._chosen_heads is None else self._chosen_heads
        if not self.heads or not set(self.heads) <= set(range(total)):
            raise BadArgument(
                f"{type(self).__name__}(heads={self.heads}): its layers have heads 0 to {total - 1}.\n"
                "Leave `heads` out to read all of them."
            )
        self._sums, self._further = Sums(len(self.layers)), Sums(len(self.layers))
        self._tokens: torch.Tensor | None = None
        self._begun_before = False
        self._pictures: MapStore | None = None
        if self.queries is not None or self.block:
            count = len(self.layers)
            self._pictures = BlockMeans(count, len(self.heads), self.block) if self.block else WholeMaps(count)

    def sample(self) -> dict[str, Any]:
        """Layers, heads and tokens, where not all of them are measured, and which maps are kept."""
        asked = {"queries": self.queries, "block": self.block}
        kept = {name: each for name, each in asked.items() if each is not None}
        return super().sample() | ({} if self._chosen_heads is None else {"heads": self.heads}) | kept

    def look_at_tokens(self, reading: TokenBatch) -> None:
        """Remember which token every column of these sequences holds; nothing where those before are not known."""
        name = (id(self), "tokens")
        held: torch.Tensor | None = reading.carry.get(name)
        tokens = reading.tokens
        if tokens is not None and reading.past:
            known = held is not None and held.shape[1] == reading.past
            tokens = torch.cat([held, tokens], dim=1) if known and held is not None else None
        reading.carry[name] = self._tokens = tokens

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> None:
        """Measure the sampled rows of one layer, and keep those that are asked for."""
        weighing, place = self.weighing(layer, notes, reading), self.layers.index(layer)
        for cut, where, bounds in self._cuts(weighing, reading.sample(self.every), reading, self.every):
            found = [self._found(weighing, where, cut, heads, bounds) for heads in self._groups(weighing, reading)]
            self._add(
                place, {name: torch.cat([each[name] for each in found], dim=2) for name in found[0]}, cut, reading
            )
        if self._pictures is not None:
            self._keep_map(self._pictures, place, weighing, reading)

    def _cuts(
        self, weighing: MapRows, sample: TokenSample, reading: TokenBatch, every: int
    ) -> Iterable[tuple[TokenSample, RowBlock, list[int]]]:
        """The sampled rows, so many at a time."""
        slots = sample.columns.shape[1]
        tokens = None if self._tokens is None else self._tokens.to(sample.columns.device)
        bounds = _bounds(sample, reading, every)
        group = self._groups(weighing, reading)[0] if slots else slice(0, 1)
        rows = max(1, BLOCK // (reading.batch * (group.stop - group.start) * weighing.columns))
        for start in range(0, slots, rows):
            part = sample if rows >= slots else sample.part(slice(start, start + rows))
            here = bounds[start : start + rows]
            columns = min(weighing.columns, reading.past + here[-1] + 1)  # none of these rows looks beyond
            yield part, RowBlock.of(reading, part, columns, tokens), here

    def _groups(self, weighing: MapRows, reading: TokenBatch) -> list[slice]:
        """Heads that are measured together, so that a fair number of rows can be."""
        most = BLOCK // (reading.batch * weighing.columns * min(ROWS, reading.width))
        together = min(len(self.heads), max(1, most))
        return [slice(start, min(start + together, len(self.heads))) for start in range(0, len(self.heads), together)]

    def _found(
        self, weighing: MapRows, where: RowBlock, cut: TokenSample, heads: slice, bounds: Bounds
    ) -> dict[str, Any]:
        weight, further = weighing.rows(where, cut, heads, bounds)
        return row_statistics(weight, weighing.value_norm(heads)[..., : where.columns], where) | further

    def _add(self, place: int, found: dict[str, torch.Tensor], cut: TokenSample, reading: TokenBatch) -> None:
        """Add up statistics of rows whose text is known from its first token, and what is checked of all rows."""
        at, few, even = slice(place, place + 1), cut.reading, found["induction_even"][..., 0]
        checked = {name: found.pop(name)[None] for name in self.checked()}
        if checked:
            self._further.add(at, few, **checked)
        if self._begun_before:
            real = few.real & (reading.first == 0)[:, None]
            row, group = (torch.where(real, each, PADDING) for each in (few.row, few.group))
            few = replace(few, real=real, row=row, group=group, whole=False)
        counts = {"tokens": torch.ones_like(even), "induction_rows": (even > 0).to(even.dtype)}
        self._sums.add(at, few, **{name: each[None] for name, each in (counts | found).items()})

    def checked(self) -> tuple[str, ...]:
        """Names of statistics that are of all rows, and not for a reader."""
        return ()

    def _keep_map(self, pictures: MapStore, place: int, weighing: MapRows, reading: TokenBatch) -> None:
        check_size(type(self).__name__, reading.past + reading.width, self.queries == "all", self.block, pictures)
        every = 1 if self.queries == "all" or self.block else 0
        device = reading.real.device
        chosen = reading.sample(1) if every else sampled_at(reading, torch.tensor(self.queries, device=device))
        position = key_positions(reading, weighing.columns)  # -1 beyond the columns written
        for cut, where, bounds in self._cuts(weighing, chosen, reading, every):
            real = cut.reading.real & (reading.first == 0)[:, None] if self._begun_before else cut.reading.real
            keys, gate = position[:, : where.columns], weighing.openness(cut)
            for heads in self._groups(weighing, reading):
                weight, _ = weighing.rows(where, cut, heads, bounds)
                opened = None if gate is None else gate[:, :, heads]
                held = (place, heads, reading.numbers, cut.reading.position, real, weight, keys, opened)
                pictures.add(StoredRows(*held))

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer and head, |weight| by distance, and the maps that were kept."""
        grouped, count, heads = ("label", "fold", "layer"), len(labels), len(self.heads)
        by_head = (*grouped, "head")
        shown = {name: each for name, each in STATISTICS.items() if name not in self.hidden()}
        variables: dict[str, Variable] = {
            f"{name}_sum": (by_head, self._sums.array(name, count, heads), *told)
            for name, told in (shown | self.extra).items()
        }
        for name, what in (("tokens", "tokens measured, each with its row"), ("induction_rows", "rows with induction")):
            variables[name] = (grouped, counted(self._sums.array(name, count)), "token", what)
        mass = self._sums.array("distance_mass", count, heads, len(DISTANCE_EDGES))
        variables["distance_mass"] = ((*by_head, "distance_bin"), mass, "1", "shares by distance, summed over tokens")
        edges = ("distance_bin", np.array(DISTANCE_EDGES), {"units": "token", "long_name": "lower edge"})
        coords = {"distance_bin": edges, "head": ("head", np.array(self.heads))}
        variables |= self.more_variables(count)
        kept: dict[str, Variable] = {} if self._pictures is None else self._pictures.variables(heads)
        return self._dataset(labels, variables | kept, **coords)

    def more_variables(self, labels: int) -> dict[str, Variable]:
        """What else is in the Dataset."""
        return {}

    def hidden(self) -> tuple[str, ...]:
        """Statistics that say nothing of this kind of mixer."""
        return ()


def _positions(probe: MapProbe, queries: Iterable[int] | None) -> list[int] | None:
    found = None if queries is None else sorted(set(queries))
    if found is not None and (not found or any(not isinstance(each, int) or each < 0 for each in found)):
        raise BadArgument(
            f"{type(probe).__name__}(queries={found}): give positions of tokens in their texts, or 'all'."
        )
    return found


def _bounds(sample: TokenSample, reading: TokenBatch, every: int) -> list[int]:
    """By slot, in rising order: a column that its token does not lie beyond, without asking a distant device."""
    slots = sample.columns.shape[1]
    if sample.columns.device.type == "cpu":
        most = sample.columns.amax(dim=0).cummax(dim=0).values if slots else sample.columns[0]
        return [int(column) for column in most.tolist()]
    if reading.whole and every:
        return [min(every * (slot + 2), reading.width) for slot in range(slots)]
    return [reading.width] * slots
