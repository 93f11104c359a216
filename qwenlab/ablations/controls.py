"""Matched random controls: the effect of ablating as much elsewhere."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import combinations, islice

from qwenlab.ablations.ablation import Ablation, check_ablations, combined
from qwenlab.ablations.match import MATCHES, Match
from qwenlab.arguments import choice, integer
from qwenlab.errors import BadArgument

TOLERANCE = 0.1
"""Largest relative difference between the parameters of a control and of its ablation."""

_MOST_LISTED = 1000  # with more sets, draw them instead of listing all
_DRAWS = 200


def controls(
    ablations: Sequence[Ablation], pool: Sequence[Ablation], *, match: Match = "number", number: int = 3, seed: int = 0
) -> list[Ablation]:
    """For each ablation, `number` different random sets of other parts that match it, or as many as there are.

    pool    ablations of single parts that do not overlap, from which the sets are drawn; those that overlap with the
            ablation are left out
    match   "number": as many parts; "kind": as many, in layers with the same kind of mixer; "parameters": any number of
            parts with as many parameters, within 10 %
    seed    of the draws of each ablation, which do not depend on the other items or the order of either list

    Raises BadArgument if an ablation has no match at all: its effect could then be that of any other parts.
    """
    check_ablations("controls(ablations, pool)", ablations)
    check_ablations("controls(pool=...)", pool)
    choice("controls", "match", match, MATCHES)
    integer("controls", "number", number, least=1)
    if several := next((part for part in pool if len(part.parts) > 1), None):
        raise BadArgument(
            f"controls(pool=...): {several.name!r} has {len(several.parts)} parts.\n"
            "Give ablations of one part each, such as units(model, 'mixer')."
        )
    if inside := _overlapping(pool):
        raise BadArgument(
            f"controls(pool=...): {' and '.join(inside)} overlap.\n"
            "Give ablations of different parts, such as units(model, 'mixer')."
        )
    pool = sorted(pool, key=lambda part: (part.layer, part.parts))
    return [control for ablation in ablations for control in _of(ablation, pool, match, number, seed)]


def _overlapping(pool: Sequence[Ablation]) -> tuple[str, str] | None:
    """The names of two ablations of one part each that overlap, if any."""
    names: dict[str, str] = {}
    for ablation in pool:
        (part,) = ablation.parts
        if part in names:
            return names[part], ablation.name
        names[part] = ablation.name
    for part, name in names.items():
        for end in re.finditer(r"[.\[]", part):
            if part[: end.start()] in names:
                return names[part[: end.start()]], name
    return None


def _of(ablation: Ablation, pool: Sequence[Ablation], match: Match, number: int, seed: int) -> Iterator[Ablation]:
    others = [other for other in pool if not other.overlaps(ablation)]
    if match == "kind":
        others = [other for other in others if other.kind == ablation.kind]
    rng = random.Random(f"controls-{seed}-{ablation.name}-{match}")
    sets = _of_size(ablation, others, rng) if match == "parameters" else _of_number(ablation, others, rng)
    chosen = list(islice(sets, number))
    if not chosen:
        raise BadArgument(
            f"controls(match={match!r}): {ablation.name!r} has {len(ablation.parts)} parts and "
            f"{ablation.parameters:,} parameters; no set of the {len(others)} other parts matches that.\n"
            "Use another match=, draw among other parts, or leave this ablation without a control."
        )
    for index, drawn in enumerate(chosen):
        label = " + ".join(part.name for part in drawn)
        yield combined(drawn, f"control {index} of {ablation.name}: {label}", control_of=ablation.name)


def _of_number(ablation: Ablation, others: Sequence[Ablation], rng: random.Random) -> Iterator[list[Ablation]]:
    """Different sets with the same number of parts, in random order."""
    count = len(ablation.parts)
    if math.comb(len(others), count) <= _MOST_LISTED:
        listed = list(map(list, combinations(others, count)))
        yield from rng.sample(listed, len(listed))
        return
    seen = set()
    while True:  # with many sets, a new one is soon drawn
        drawn = tuple(sorted(rng.sample(range(len(others)), count)))
        if drawn not in seen:
            seen.add(drawn)
            yield [others[index] for index in drawn]


def _of_size(ablation: Ablation, others: Sequence[Ablation], rng: random.Random) -> Iterator[list[Ablation]]:
    """Different sets with as many parameters, as far as draws find them: parts are added as long as they fit."""
    least, most = ((1 + sign * TOLERANCE) * ablation.parameters for sign in (-1, 1))
    seen = set()
    for _ in range(_DRAWS if ablation.parameters else 0):
        chosen, total = [], 0
        for index in rng.sample(range(len(others)), len(others)):
            if total + others[index].parameters <= most:
                chosen.append(index)
                total += others[index].parameters
        drawn = tuple(sorted(chosen))
        if total >= least and drawn not in seen:
            seen.add(drawn)
            yield [others[index] for index in drawn]
