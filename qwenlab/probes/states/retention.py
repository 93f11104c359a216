"""Probe of how well DeltaNet heads retain stored key-value pairs, against decay and later writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.arguments import integer
from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import Chunk
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import BinnedSums, LayerSlice, Sums, counted
from qwenlab.probes.base import GROUPED, Reduced, Variable
from qwenlab.probes.bins import OCTAVES, POSITION_EDGES, lower_edges, octave_of
from qwenlab.probes.states.base import StateProbe, StateSample, state_updates
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
    """How well the state of a DeltaNet head recalls pairs (key k_s, value v_s) that were stored earlier.

    For sampled tokens s <= t of the same sequence, by octave of the distance t - s and by octave of the write strength
    since (the sum of beta over the tokens after s up to t, in pairs), it sums

    recall    <S_t^T k_s, v_s> / ||v_s||^2: the share of the value that the state returns for its key
    before    the same just before s was written, the state already decayed: recall of a pair that is not stored,
              because keys are alike and values have a component in common
    written   the same right after: written - before is the recall that storing added, and that can be lost
    decayed   (written - before) times the decays since: what would be left if no later token had written
    error     retrieval error ||S_t^T k_s - v_s|| / ||v_s||

    The difference of `decayed` and recall - before was overwritten by later writes to similar keys.

    Each sequence has a reservoir of up to 48 pairs, from just stored to about 8,000 x `pairs` tokens old, equally many
    per octave (`pairs.slot_of`), so memory does not grow with the text. Pairs stored before the block are not queried.

    layers, heads, every  as in `StateProbe`: states are queried after one token per block of `every`
    pairs                 one pair per block of this many tokens is stored
    store_ids, query_ids  of these, only the pairs of tokens with these ids, and only the states after tokens with these
                          ids: in a list of keys and values, store the values' pairs and query where the list ends
    """

    name = "retention"

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 64,
        pairs: int = 16,
        store_ids: Iterable[int] | None = None,
        query_ids: Iterable[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=every)
        self.pairs = integer("Retention", "pairs", pairs, least=1, unit="tokens")
        self.store_ids, self.query_ids = _ids("store_ids", store_ids), _ids("query_ids", query_ids)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        count = len(self.layers)
        self._tokens = Sums(count)
        self._by_bin = {name: BinnedSums(count, OCTAVES) for name in _BINS}

    def sample(self) -> dict[str, Any]:
        given = {"store_ids": self.store_ids, "query_ids": self.query_ids}
        ids = {name: list(each) for name, each in given.items() if each is not None}
        return super().sample() | ({} if self.pairs == 1 else {"pairs": self.pairs}) | ids

    def on_tokens(self, tokens: TokenBatch) -> None:
        """Choose the pairs to query, and those to keep in the reservoir."""
        name = (id(self), "pairs")
        columns, old = tokens.carry.get(name, (-1, None))
        # The reservoir of new sequences, or of cropped ones, is empty.
        tokens.carry[id(self), "old"] = old if columns == tokens.past else np.full((tokens.batch, SLOTS), -1)
        tokens.carry[name] = (tokens.past + tokens.width, self._query(tokens).position)

    def _query(self, tokens: TokenBatch) -> PairQuery:
        def query() -> PairQuery:
            steps = StateSample.of(tokens, self.every, ids=self.query_ids)
            stored = StateSample.of(tokens, self.pairs, ids=self.store_ids)
            return PairQuery.of(steps, stored, tokens, self.pairs, tokens.carry[id(self), "old"])

        return tokens.once((PairQuery, id(self)), query)

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        """Return recall and retrieval error of the queried pairs after the chosen tokens, [query, head]."""
        call, query, name = captured["mixer.rule"], self._query(tokens), (id(self), layer)
        assert isinstance(call, DeltaRuleCall)
        key, value, g, beta = call.updates(self._head_indices(call.device), tokens)
        earlier: StoredPairs = tokens.carry.get(name) or StoredPairs.empty(key, value)
        elapsed, strength = (
            now[:, None] + each.double().cumsum(dim=1) for now, each in ((earlier.elapsed, g), (earlier.strength, beta))
        )
        at = (query.stored.row, query.stored.column)
        pairs = earlier.with_new(key[at], value[at], elapsed[at], strength[at])
        results, when_stored = [], []
        for number, chunk in enumerate(self._chunks(layer, call, tokens)):
            when_stored += list(_retrieved_when_stored(chunk, number, query, len(self.heads)))
            for update in state_updates(chunk, number, query.steps, len(self.heads)):
                results.append(pairs.retrieve(query.pair[update.which], update.after))
        pairs = pairs.with_retrieved(when_stored)
        tokens.carry[name] = pairs.selected(query.keep, elapsed[:, -1], strength[:, -1])
        if not len(query.steps):
            return None
        which = query.pair.flatten()[query.flat]
        now = (query.steps.row[query.step], query.steps.column[query.step])
        recall, error = (torch.cat([each[part].flatten(0, 1) for each in results])[query.flat] for part in (0, 1))
        left = (elapsed[now] - pairs.elapsed_then[which]).exp()
        since = strength[now] - pairs.strength_then[which]
        before, written = pairs.before[which], pairs.written[which]
        reduced = {"recall": recall, "before": before, "written": written, "decayed": (written - before) * left}
        return reduced | {"error": error, "writes": since}

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        query = self._query(tokens)
        values = {name: reduced[name] for name in _SUMMED} | {"pairs": torch.ones_like(reduced["recall"])}
        group = query.steps.group[query.step]
        bins = {"distance": octave_of(query.distance)[:, None], "writes": octave_of(reduced["writes"])}
        for name, place in bins.items():
            self._by_bin[name].add(where, tokens.groups, group, place, **values)
        ones = torch.ones(len(reduced["recall"]), len(query.steps), device=group.device)
        self._tokens.add_rows(where, tokens.groups, query.steps.group, tokens=ones)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count, heads = len(labels), len(self.heads)
        tokens = counted(self._tokens.array("tokens", count))
        meaning = "tokens after which pairs were asked for"
        variables: dict[str, Variable] = {"tokens": (GROUPED, tokens, "token", meaning)}
        for by, since in _BINS.items():
            dims, sums = (*GROUPED, "head", f"{by}_bin"), self._by_bin[by]
            for name, meaning in _SUMMED.items():
                variables[f"{name}_by_{by}"] = (dims, sums.array(name, count, heads), "1", f"{meaning}, by {since}")
            pairs = counted(sums.array("pairs", count, heads))
            variables[f"pairs_by_{by}"] = (dims, pairs, "pair", f"pairs asked for, by {since}")
        distance, writes = (
            lower_edges(f"{by}_bin", POSITION_EDGES, units) for by, units in (("distance", "token"), ("writes", "pair"))
        )
        return self.build_dataset(labels, variables, distance_bin=distance, writes_bin=writes)


def _ids(name: str, ids: Any) -> tuple[int, ...] | None:
    """Return sorted unique token ids. Raises BadArgument if they are not token ids."""
    if ids is None:
        return None
    listed = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else []
    if not listed or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in listed):
        raise BadArgument(f"Retention({name}={ids!r}): give token ids, such as tokenizer(text).input_ids.")
    return tuple(sorted(set(listed)))


def _retrieved_when_stored(
    chunk: Chunk, number: int, query: PairQuery, heads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Iterate over S^T k_s just before and right after each stored token s of a chunk, each [stored, head, channel].

    S_s is alpha_s S + k_s u_s^T, whose first term returns the prediction.
    """
    key, predicted, written = (each.unflatten(0, (-1, heads)) for each in (chunk.key, chunk.predicted, chunk.written))
    for which in query.stored.parts(number, len(query.stored) or 1):
        row, at = query.stored.row[which], query.stored.column[which] - number * key.shape[2]
        k, before = key[row, :, at], predicted[row, :, at]
        yield before, before + torch.linalg.vecdot(k, k)[..., None] * written[row, :, at]
