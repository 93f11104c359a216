"""Acceptance rates of drafts, from counts that add up over rounds."""

import numpy as np
from scipy.optimize import brentq


def tally(
    drafted: np.ndarray,
    tested: np.ndarray,
    accepted: np.ndarray,
    agreed: np.ndarray,
    emitted: np.ndarray,
    *,
    depth: int,
) -> np.ndarray:
    """Counts of each round, to be added up: [round, 4 depth + 6], from int [round]; agreed is -1 if not known.

    For each draft 1 or 0: drafted, tested, accepted, agreed (NaN: not known); then the numbers drafted, accepted,
    agreed, emitted; 1; and 1 for a round with drafts.
    """
    known = np.where(agreed < 0, np.nan, agreed)
    place = np.arange(1, depth + 1)
    counts = (count[:, None] for count in (drafted, tested, accepted, known))
    by_place = [np.where(np.isnan(count), np.nan, count >= place) for count in counts]
    return np.column_stack([*by_place, drafted, accepted, known, emitted, np.ones(len(drafted)), drafted > 0])


def rates(sums: np.ndarray, depth: int) -> np.ndarray:
    """Rates from sums [..., 4 depth + 6] of a tally: [..., 3 depth + 4], NaN where nothing was counted.

    By place unconditional, conditional and server position rate; then acceptance length, draft efficiency, server rate,
    server length.
    """
    drafted_i, tested_i, accepted_i, agreed_i, totals = np.split(
        sums, [depth, 2 * depth, 3 * depth, 4 * depth], axis=-1
    )
    drafted, accepted, agreed, emitted, rounds, drafting = np.moveaxis(totals, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_place = [accepted_i / drafted_i, accepted_i / tested_i, agreed_i / drafting[..., None]]
        whole = np.stack([emitted / rounds, accepted / drafted, agreed / drafted, 1 + agreed / drafting], axis=-1)
        return np.concatenate([*by_place, whole], axis=-1)


def trials(sums: np.ndarray, depth: int) -> np.ndarray:
    """Number of rounds that each of the `rates` is a mean over, from sums [..., 4 depth + 6]: [..., 3 depth + 4]."""
    rounds, drafting = sums[..., -2:-1], sums[..., -1:]
    by_place = [sums[..., : 2 * depth], np.repeat(drafting, depth, axis=-1)]
    return np.concatenate([*by_place, rounds, np.repeat(drafting, 3, axis=-1)], axis=-1)


def limits(depth: int) -> np.ndarray:
    """Lower and upper bounds of the `rates`: [2, 3 depth + 4]. Lengths are from 1 to depth + 1."""
    length = np.zeros(3 * depth + 4)
    length[[3 * depth, 3 * depth + 3]] = 1
    return np.stack([length, 1 + depth * length])


def chain(sums: np.ndarray) -> np.ndarray:
    """Expected number of tokens per round for each depth: [..., depth].

    sums     [..., 2 depth]  tested by place, accepted by place
    returns  1 + sum over i <= d of the product over j <= i of accepted_j / tested_j, for d = 1, 2, ...; NaN from the
             first place without tested drafts on
    """
    tested, accepted = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 + np.cumsum(np.cumprod(accepted / tested, axis=-1), axis=-1)


def break_even(length: float, depth: int) -> float:
    """Solve 1 + a + ... + a^depth = length for the constant conditional acceptance a, between 0 and 1.

    0 if length is at most 1: drafting pays with nothing accepted. NaN if it is over depth + 1: drafting never pays.
    """
    if not length <= depth + 1:
        return np.nan
    if length <= 1:
        return 0.0
    return float(brentq(lambda a: np.polyval(np.ones(depth + 1), a) - length, 0.0, 1.0, xtol=1e-12))
