"""Which stored pairs a state is asked for: few, of every age, and the same however tokens are fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qwenlab.capture.tokens import TokenBatch, drawn
from qwenlab.probes.states.base import StateSample

AGES, EACH = 12, 4
SLOTS = AGES * EACH
"""Pairs of a sequence that are remembered at a time: 4 of each of 12 ages, which double."""


def slot_of(position: np.ndarray, pairs: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pairs stored at these positions are remembered, and the positions at which they are forgotten.

    One token of every `pairs` stands for its block (`reading.drawn`). With j the number of the block, counted from 1,
    and 2^r the largest power of two that divides it, the pair is of age r, and is forgotten for the fourth pair of that
    age after it: so at any time pairs are known from just now to about 8,000 blocks ago, as many of each octave.
    """
    block = position // pairs + 1
    age = np.minimum(np.log2(block & -block).astype(np.int64), AGES - 1)
    apart = np.where(age < AGES - 1, age + 1, age)  # the oldest are not thinned out further
    return age * EACH + (block >> apart) % EACH, drawn(block - 1 + (EACH << apart), pairs, number)


@dataclass(frozen=True)
class PairQuery:
    """What a reading asks of which pairs. A pair's index counts those remembered, [row, slot], then those of `stored`.

    steps     the tokens after which a state is asked;  stored  the tokens whose pair is stored
    pair      int [step, place]: the pairs asked for after each step, filled up with any
    flat      int [asked]: which of those, counted through, are no fillers
    step      int [asked]: index of their step;  distance  int [asked]: tokens since the pair was stored
    keep      int [row, slot]: the pairs to remember from here on, any where there is none
    position  int [row, slot]: their positions, on the host; -1 where there is none
    """

    steps: StateSample
    stored: StateSample
    pair: torch.Tensor
    flat: torch.Tensor
    step: torch.Tensor
    distance: torch.Tensor
    keep: torch.Tensor
    position: np.ndarray

    @staticmethod
    def of(steps: StateSample, stored: StateSample, reading: TokenBatch, pairs: int, held: np.ndarray) -> PairQuery:
        """What is asked for after `steps`, one token of every `pairs` standing for its block among the `stored`.

        held  int [row, slot]: positions of the pairs remembered before; -1 where there is none
        """
        numbers, batch = np.array(reading.numbers), reading.batch
        row, position = stored.row.cpu().numpy(), stored.position.cpu().numpy()
        slot, until = slot_of(position, pairs, numbers[row])
        _, held_until = slot_of(np.maximum(held, 0), pairs, numbers[:, None])
        of_row = np.concatenate([np.where(held < 0, -1, np.arange(batch)[:, None]).ravel(), row])
        since, until = np.concatenate([held.ravel(), position]), np.concatenate([held_until.ravel(), until])

        now = steps.position.cpu().numpy()
        found = [
            np.flatnonzero((of_row == its_row) & (since <= at) & (at < until))
            for its_row, at in zip(steps.row.tolist(), now.tolist(), strict=True)
        ]
        pair = np.zeros((len(found), max(map(len, found), default=0)), np.int64)
        for number, which in enumerate(found):
            pair[number, : len(which)] = which
        alive = np.arange(pair.shape[1]) < np.array([len(which) for which in found], np.int64)[:, None]
        step, place = alive.nonzero()
        distance = now[step] - since[pair[step, place]]

        keep = np.where(held < 0, -1, np.arange(held.size).reshape(held.shape))
        order = np.argsort(position, kind="stable")
        keep[row[order], slot[order]] = held.size + order  # of several in one slot, the newest
        later = np.where(keep < 0, -1, since[keep])
        several = {"pair": pair, "flat": np.flatnonzero(alive), "step": step, "distance": distance}
        several["keep"] = np.maximum(keep, 0)
        tensors = {name: torch.from_numpy(each).to(reading.real.device) for name, each in several.items()}
        return PairQuery(steps, stored, position=later, **tensors)


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of one layer, [pair, head, ...]: those remembered of each sequence, and then those of a reading.

    key, value        as they were stored, the key normalised
    before, written   how much of the value the state gave back just before it was stored, and right after
    elapsed_then, strength_then  the two below, right after it was stored
    elapsed, strength  float64 [row, head]: ln of all decays, and all write strengths, summed over the sequence so far
    """

    key: torch.Tensor
    value: torch.Tensor
    before: torch.Tensor
    written: torch.Tensor
    elapsed_then: torch.Tensor
    strength_then: torch.Tensor
    elapsed: torch.Tensor
    strength: torch.Tensor

    @staticmethod
    def none(key: torch.Tensor, value: torch.Tensor) -> StoredPairs:
        """Those of sequences that begin, whose keys are [row, position, head, key channel]; all places are empty."""
        batch, heads = len(key), key.shape[2]
        keys, values = (key.new_zeros(batch * SLOTS, heads, each.shape[-1]) for each in (key, value))
        zeros = key.new_zeros(batch * SLOTS, heads, dtype=torch.float64)
        return StoredPairs(keys, values, zeros, zeros, zeros, zeros, zeros[:batch], zeros[:batch])

    def and_stored(
        self, key: torch.Tensor, value: torch.Tensor, elapsed: torch.Tensor, strength: torch.Tensor
    ) -> StoredPairs:
        """These, and those of a reading."""
        more = {"key": key, "value": value, "elapsed_then": elapsed, "strength_then": strength}
        return replace(self, **{name: torch.cat([getattr(self, name), each]) for name, each in more.items()})

    def given_back(self, which: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What states [step, head, key channel, channel] give back of pairs [step, place], and the retrieval error.

        Each [step, place, head], float64.
        """
        key, value = (each[which].transpose(1, 2) for each in (self.key, self.value))
        back = key @ state
        recall, error = along(back, value), _norm(back - value) / _norm(value).clamp_min(_TINY)
        return recall.transpose(1, 2), error.transpose(1, 2)

    def found_when_stored(self, given_back: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> StoredPairs:
        """With what was given back of those of the reading before and after: [pair, head, channel], by part."""
        stored = self.value[len(self.written) :]
        both = (along(torch.cat([stored[:0], *(each[at] for each in given_back)]), stored) for at in (0, 1))
        before, written = (torch.cat([held, new]) for held, new in zip((self.before, self.written), both, strict=True))
        return replace(self, before=before, written=written)

    def remembered(self, keep: torch.Tensor, elapsed: torch.Tensor, strength: torch.Tensor) -> StoredPairs:
        """Those to remember, after a reading."""
        names = ("key", "value", "before", "written", "elapsed_then", "strength_then")
        kept = {name: getattr(self, name)[keep.flatten()] for name in names}
        return replace(self, **kept, elapsed=elapsed, strength=strength)


_TINY = torch.finfo(torch.float32).tiny


def along(found: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """<found, value> / ||value||^2 over the last axis, float64."""
    found, value = found.double(), value.double()
    return torch.linalg.vecdot(found, value) / torch.linalg.vecdot(value, value).clamp_min(_TINY)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
