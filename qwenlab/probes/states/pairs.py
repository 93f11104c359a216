"""Log-spaced reservoir of key-value pairs, independent of batching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qwenlab.capture.sampled_steps import drawn
from qwenlab.capture.tokens import TokenBatch
from qwenlab.probes.states.base import StateSample

AGES, PER_AGE = 12, 4
SLOTS = AGES * PER_AGE
"""Number of pairs in the reservoir of a sequence: 4 of each of 12 ages, which double."""


def slot_of(position: np.ndarray, pairs: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the slot of each pair stored at these positions, and the position at which it is replaced.

    One token per block of `pairs` tokens is stored (chosen by `sampled_steps.drawn`). With j the number of the block,
    counted from 1, and 2^r the largest power of two that divides it, the pair is of age r and is replaced by the fourth
    pair of that age after it. So at any time the reservoir has pairs from just now to about 8,000 blocks ago, equally
    many per octave.
    """
    block = position // pairs + 1
    age = np.minimum(np.log2(block & -block).astype(np.int64), AGES - 1)
    apart = np.where(age < AGES - 1, age + 1, age)  # the oldest are not thinned out further
    return age * PER_AGE + (block >> apart) % PER_AGE, drawn(block - 1 + (PER_AGE << apart), pairs, number)


@dataclass(frozen=True)
class PairQuery:
    """The pairs that the states of a batch are queried for.

    The index of a pair counts those in the reservoir, [row, slot], then those that this batch stores.
    """

    steps: StateSample  # the tokens after which a state is queried
    stored: StateSample  # the tokens whose pair is stored
    pair: torch.Tensor  # int [step, place]: the pairs queried after each step, padded with any pair
    flat: torch.Tensor  # int [query]: flat indices of the entries of `pair` that are not padding
    step: torch.Tensor  # int [query]: index of the step
    distance: torch.Tensor  # int [query]: tokens since the pair was stored
    keep: torch.Tensor  # int [row, slot]: the pairs in the reservoir after this batch; any pair for an empty slot
    position: np.ndarray  # int [row, slot]: their positions, on the host; -1 for an empty slot

    @staticmethod
    def of(steps: StateSample, stored: StateSample, tokens: TokenBatch, pairs: int, old: np.ndarray) -> PairQuery:
        """Return the queries after `steps`, with one `stored` token per block of `pairs` tokens.

        old  int [row, slot]: positions of the pairs in the reservoir before this batch; -1 for an empty slot
        """
        numbers, batch = np.array(tokens.numbers), tokens.batch
        row, position = stored.row.cpu().numpy(), stored.position.cpu().numpy()
        slot, until = slot_of(position, pairs, numbers[row])
        _, old_until = slot_of(np.maximum(old, 0), pairs, numbers[:, None])
        of_row = np.concatenate([np.where(old < 0, -1, np.arange(batch)[:, None]).ravel(), row])
        since, until = np.concatenate([old.ravel(), position]), np.concatenate([old_until.ravel(), until])

        now = steps.position.cpu().numpy()
        queried = [
            np.flatnonzero((of_row == its_row) & (since <= at) & (at < until))
            for its_row, at in zip(steps.row.tolist(), now.tolist(), strict=True)
        ]
        pair = np.zeros((len(queried), max(map(len, queried), default=0)), np.int64)
        for number, which in enumerate(queried):
            pair[number, : len(which)] = which
        alive = np.arange(pair.shape[1]) < np.array([len(which) for which in queried], np.int64)[:, None]
        step, place = alive.nonzero()
        distance = now[step] - since[pair[step, place]]

        keep = np.where(old < 0, -1, np.arange(old.size).reshape(old.shape))
        order = np.argsort(position, kind="stable")
        keep[row[order], slot[order]] = old.size + order  # of several in one slot, the newest
        later = np.where(keep < 0, -1, since[keep])
        arrays = {"pair": pair, "flat": np.flatnonzero(alive), "step": step, "distance": distance}
        arrays["keep"] = np.maximum(keep, 0)
        tensors = {name: torch.from_numpy(array).to(tokens.real.device) for name, array in arrays.items()}
        return PairQuery(steps, stored, position=later, **tensors)


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of one layer, [pair, head, ...]: the reservoir of each sequence, then those that a batch stores."""

    key: torch.Tensor  # as it was stored, normalised
    value: torch.Tensor
    before: torch.Tensor  # recall of the value just before it was stored
    written: torch.Tensor  # recall of the value right after it was stored
    elapsed_then: torch.Tensor  # `elapsed` and `strength` right after it was stored
    strength_then: torch.Tensor
    elapsed: torch.Tensor  # float64 [row, head]: ln of all decays, summed over the sequence so far
    strength: torch.Tensor  # float64 [row, head]: all write strengths, summed over the sequence so far

    @staticmethod
    def empty(key: torch.Tensor, value: torch.Tensor) -> StoredPairs:
        """Return the empty reservoir of new sequences, whose keys are [row, position, head, key channel]."""
        batch, heads = len(key), key.shape[2]
        keys, values = (key.new_zeros(batch * SLOTS, heads, each.shape[-1]) for each in (key, value))
        zeros = key.new_zeros(batch * SLOTS, heads, dtype=torch.float64)
        return StoredPairs(keys, values, zeros, zeros, zeros, zeros, zeros[:batch], zeros[:batch])

    def with_new(
        self, key: torch.Tensor, value: torch.Tensor, elapsed: torch.Tensor, strength: torch.Tensor
    ) -> StoredPairs:
        """Return these pairs followed by those that a batch stores."""
        more = {"key": key, "value": value, "elapsed_then": elapsed, "strength_then": strength}
        return replace(self, **{name: torch.cat([getattr(self, name), each]) for name, each in more.items()})

    def retrieve(self, which: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return recall and retrieval error of pairs [step, place] by states [step, head, key channel, channel].

        Each [step, place, head], float64.
        """
        key, value = (each[which].transpose(1, 2) for each in (self.key, self.value))
        retrieved = key @ state
        recall, error = projection(retrieved, value), _norm(retrieved - value) / _norm(value).clamp_min(_TINY)
        return recall.transpose(1, 2), error.transpose(1, 2)

    def with_retrieved(self, retrieved: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> StoredPairs:
        """Add the recall of the new pairs just before and right after storing: [pair, head, channel], by part."""
        values = self.value[len(self.written) :]
        both = (projection(torch.cat([values[:0], *(each[at] for each in retrieved)]), values) for at in (0, 1))
        before, written = (torch.cat([old, new]) for old, new in zip((self.before, self.written), both, strict=True))
        return replace(self, before=before, written=written)

    def selected(self, keep: torch.Tensor, elapsed: torch.Tensor, strength: torch.Tensor) -> StoredPairs:
        """Return the reservoir after a batch."""
        names = ("key", "value", "before", "written", "elapsed_then", "strength_then")
        pairs = {name: getattr(self, name)[keep.flatten()] for name in names}
        return replace(self, **pairs, elapsed=elapsed, strength=strength)


_TINY = torch.finfo(torch.float32).tiny


def projection(vector: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return <vector, value> / ||value||^2 over the last axis, float64."""
    vector, value = vector.double(), value.double()
    return torch.linalg.vecdot(vector, value) / torch.linalg.vecdot(value, value).clamp_min(_TINY)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
