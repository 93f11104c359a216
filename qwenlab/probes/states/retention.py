"""The probe of what DeltaNet heads still know of a stored pair: how far decay and later writes have taken it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import Chunk
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import At, BinnedSums, Sums, counted
from qwenlab.probes.base import Reduced, Variable
from qwenlab.probes.states.base import OCTAVES, POSITION_EDGES, StateProbe, StateSample, moments, octave_of
from qwenlab.probes.states.pairs import SLOTS, PairQuery, StoredPairs

_SUMMED = {
    "recall": "what the state gives back of a stored value, summed over pairs",
    "before": "the same just before the pair was stored, summed over pairs",
    "written": "the same right after the pair was stored, summed over pairs",
    "decayed": "what decay alone would have left of written - before, summed over pairs",
    "error": "retrieval error of a stored pair, summed over pairs",
}
_BINS = {"distance": "tokens since it was stored", "writes": "write strength since it was stored"}


class Retention(StateProbe):
    """What the state of a DeltaNet head still knows of pairs (key k_s, value v_s) that were stored a while ago.

    After sampled tokens t, of sampled tokens s <= t of the same sequence, by octave of the distance t - s and by octave
    of what was written since (the sum of the write strengths beta of the tokens after s up to t, in pairs), sums of

    recall    <S_t^T k_s, v_s> / ||v_s||^2: how much of the value the state gives back for its key; 1: all
    before    the same just before s was written, the state already decayed: what is given back of a pair that is not
              stored, because keys are alike and values have a part in common
    written   the same right after: written - before is what storing it added, and what there is to be lost
    decayed   (written - before) times the decays since: what would be left had no later token written
    error     retrieval error ||S_t^T k_s - v_s|| / ||v_s||

    What recall - before lacks of `decayed` was overwritten: later writes to similar keys took the value's place.

    A sequence has up to 48 pairs remembered at a time, from just stored to about 8,000 x `pairs` tokens old, as many of
    each octave (`pairs.slot_of`): memory does not grow with what is read. What was stored before the block began is not
    asked for.

    layers, heads, every  as in `StateProbe`: the state is asked after one token of every so many
    pairs                 the pair of one token of every so many is stored to be asked for
    stored, asked         of these, only the pairs of tokens with such ids, and only the states after such tokens: in a
                          list of keys and values, the values' pairs, asked for where the list ends
    """

    name = "retention"

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 64,
        pairs: int = 16,
        stored: Iterable[int] | None = None,
        asked: Iterable[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=every)
        if not isinstance(pairs, int) or isinstance(pairs, bool) or pairs < 1:
            raise BadArgument(f"Retention(pairs={pairs!r}): give a whole number of tokens, 1 or more.")
        self.pairs, self.stored, self.asked = pairs, _ids("stored", stored), _ids("asked", asked)

    def start(self, decoder: Decoder) -> None:
        """Empty the sums."""
        super().start(decoder)
        count = len(self.layers)
        self._tokens = Sums(count)
        self._sums = {name: BinnedSums(count, OCTAVES) for name in _BINS}

    def sample(self) -> dict[str, Any]:
        """Layers, heads, tokens and pairs, where not all of them are measured."""
        ids = {name: list(each) for name, each in (("stored", self.stored), ("asked", self.asked)) if each is not None}
        return super().sample() | ({} if self.pairs == 1 else {"pairs": self.pairs}) | ids

    def look_at_tokens(self, reading: TokenBatch) -> None:
        """Say which pairs are asked for, and which to remember."""
        name = (id(self), "pairs")
        columns, held = reading.carry.get(name, (-1, None))
        # Of new sequences, or cropped ones, nothing is remembered.
        self._held = held if columns == reading.past else np.full((reading.batch, SLOTS), -1)
        reading.carry[name] = (reading.past + reading.width, self._asked(reading).position)

    def _asked(self, reading: TokenBatch) -> PairQuery:
        def asked() -> PairQuery:
            steps = StateSample.of(reading, self.every, None).of_ids(reading, self.asked)
            stored = StateSample.of(reading, self.pairs, None).of_ids(reading, self.stored)
            return PairQuery.of(steps, stored, reading, self.pairs, self._held)

        return reading.once((PairQuery, id(self)), asked)

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced | None:
        """What the states after the chosen tokens give back of the pairs asked for, [asked, head]."""
        call, asked, name = notes["rule"], self._asked(reading), (id(self), layer)
        assert isinstance(call, DeltaRuleCall)
        key, value, g, beta = call.of_heads(self._which(call.device), reading)
        earlier: StoredPairs = reading.carry.get(name) or StoredPairs.none(key, value)
        elapsed, strength = (
            now[:, None] + each.double().cumsum(dim=1) for now, each in ((earlier.elapsed, g), (earlier.strength, beta))
        )
        at = (asked.stored.row, asked.stored.column)
        pairs = earlier.and_stored(key[at], value[at], elapsed[at], strength[at])
        found, when_stored = [], []
        for number, chunk in enumerate(self._walk(layer, call, reading)):
            when_stored += list(_given_back_at_once(chunk, number, asked, len(self.heads)))
            for moment in moments(chunk, number, asked.steps, len(self.heads)):
                found.append(pairs.given_back(asked.pair[moment.which], moment.after))
        pairs = pairs.found_when_stored(when_stored)
        reading.carry[name] = pairs.remembered(asked.keep, elapsed[:, -1], strength[:, -1])
        if not len(asked.steps):
            return None
        which = asked.pair.flatten()[asked.flat]
        now = (asked.steps.row[asked.step], asked.steps.column[asked.step])
        recall, error = (torch.cat([each[part].flatten(0, 1) for each in found])[asked.flat] for part in (0, 1))
        left = (elapsed[now] - pairs.elapsed_then[which]).exp()
        since = strength[now] - pairs.strength_then[which]
        before, written = pairs.before[which], pairs.written[which]
        told = {"recall": recall, "before": before, "written": written, "decayed": (written - before) * left}
        return told | {"error": error, "writes": since}

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up by distance and by what was written since."""
        asked = self._asked(reading)
        values = {name: kept[name] for name in _SUMMED} | {"pairs": torch.ones_like(kept["recall"])}
        group = asked.steps.group[asked.step]
        bins = {"distance": octave_of(asked.distance)[:, None], "writes": octave_of(kept["writes"])}
        for name, place in bins.items():
            self._sums[name].add(where, reading.groups, group, place, **values)
        ones = torch.ones(len(kept["recall"]), len(asked.steps), device=group.device)
        self._tokens.move(where, reading.groups, asked.steps.group, tokens=ones)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer and head, by octave of distance and by octave of what was written since."""
        grouped, count = ("label", "fold", "layer"), len(labels)
        tokens = counted(self._tokens.array("tokens", count))
        what = "tokens after which pairs were asked for"
        variables: dict[str, Variable] = {"tokens": (grouped, tokens, "token", what)}
        coords: dict[str, Any] = {"head": ("head", np.array(self.heads))}
        for by, meaning in _BINS.items():
            dims, sums = (*grouped, "head", f"{by}_bin"), self._sums[by]
            for name, said in _SUMMED.items():
                values = sums.array(name, count, len(self.heads))
                variables[f"{name}_by_{by}"] = (dims, values, "1", f"{said}, by {meaning}")
            pairs = counted(sums.array("pairs", count, len(self.heads)))
            variables[f"pairs_by_{by}"] = (dims, pairs, "pair", f"pairs asked for, by {meaning}")
            units = "token" if by == "distance" else "pair"
            coords[f"{by}_bin"] = (f"{by}_bin", POSITION_EDGES, {"units": units, "long_name": "lower edge"})
        return self._dataset(labels, variables, **coords).assign_attrs(self._gap.attrs)


def _ids(name: str, ids: Any) -> tuple[int, ...] | None:
    """Ids of tokens, each once; raises BadArgument for what is none."""
    if ids is None:
        return None
    found = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else []
    if not found or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found):
        raise BadArgument(f"Retention({name}={ids!r}): give ids of tokens, such as tokenizer(text).input_ids.")
    return tuple(sorted(set(found)))


def _given_back_at_once(
    chunk: Chunk, number: int, asked: PairQuery, heads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """S^T k_s just before and right after each token s of a chunk whose pair is stored, [stored, head, channel] each.

    S_s is alpha_s S + k_s u_s^T, of which the first term gives back what was predicted.
    """
    key, predicted, written = (each.unflatten(0, (-1, heads)) for each in (chunk.key, chunk.predicted, chunk.written))
    for which in asked.stored.parts(number, len(asked.stored) or 1):
        row, at = asked.stored.row[which], asked.stored.column[which] - number * key.shape[2]
        k, before = key[row, :, at], predicted[row, :, at]
        yield before, before + torch.linalg.vecdot(k, k)[..., None] * written[row, :, at]
