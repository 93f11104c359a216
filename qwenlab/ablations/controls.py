"""Matched random controls: what ablating as much elsewhere does."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import combinations, islice

from qwenlab.ablations.ablation import Ablation, check_ablations, combined
from qwenlab.ablations.match import MATCHES, Match
from qwenlab.errors import BadArgument

TOLERANCE = 0.1
"""How far the parameters of a control may be from those it is matched with, of these."""

_FEW = 1000  # sets that are listed rather than drawn
_DRAWS = 200


def controls(
    ablations: Sequence[Ablation],
    among: Sequence[Ablation],
    *,
    match: Match = "number",
    number: int = 3,
    seed: int = 0,
) -> list[Ablation]:
    """For each ablation, random sets of other parts that match it: `number` different ones, or fewer where there are
    fewer.

    among   ablations of single parts that do not overlap, which the sets are drawn from; those that overlap with the
            ablation are left out
    match   "number": as many parts; "kind": as many, in layers with the same kind of mixer; "parameters": however many
            have as many parameters, within 10 %
    seed    of the draws, made for every ablation by its name: they hang neither on what else is in a list, nor on the
            order of either list

    Raises BadArgument where an ablation has no match at all: nothing can be said then of it that might not be true of
    any other parts.
    """
    check_ablations("controls(ablations, among)", ablations)
    check_ablations("controls(among=...)", among)
    if match not in MATCHES:
        raise BadArgument(f"controls(match={match!r}): choose among {', '.join(MATCHES)}.")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise BadArgument(f"controls(number={number!r}): give a whole number, 1 or more.")
    if several := next((each for each in among if len(each.parts) > 1), None):
        raise BadArgument(
            f"controls(among=...): {several.name!r} is of {len(several.parts)} parts.\n"
            "Give ablations of one part each, such as units(model, 'mixer')."
        )
    if inside := _overlapping(among):
        raise BadArgument(
            f"controls(among=...): {' and '.join(inside)} are of the same part, or one lies in the other.\n"
            "Give ablations of different parts, such as units(model, 'mixer')."
        )
    among = sorted(among, key=lambda each: (each.layer, each.parts))
    return [control for ablation in ablations for control in _of(ablation, among, match, number, seed)]


def _overlapping(among: Sequence[Ablation]) -> tuple[str, str] | None:
    """The names of two ablations of one part each that overlap, if there are any."""
    named: dict[str, str] = {}
    for each in among:
        if each.parts[0] in named:
            return named[each.parts[0]], each.name
        named[each.parts[0]] = each.name
    for part, name in named.items():
        for end in re.finditer(r"[.\[]", part):
            if part[: end.start()] in named:
                return named[part[: end.start()]], name
    return None


def _of(ablation: Ablation, among: Sequence[Ablation], match: Match, number: int, seed: int) -> Iterator[Ablation]:
    """The controls of one ablation."""
    others = [each for each in among if not each.overlaps(ablation)]
    if match == "kind":
        others = [each for each in others if each.kind == ablation.kind]
    rng = random.Random(f"controls-{seed}-{ablation.name}-{match}")
    sets = _of_size(ablation, others, rng) if match == "parameters" else _of_number(ablation, others, rng)
    found = list(islice(sets, number))
    if not found:
        raise BadArgument(
            f"controls(match={match!r}): {ablation.name!r} has {len(ablation.parts)} parts and "
            f"{ablation.parameters:,} parameters, and the {len(others)} other parts to draw from do not make up as "
            "many.\nMatch it in another way, draw among other parts, or leave it without a control."
        )
    for index, drawn in enumerate(found):
        names = " + ".join(each.name for each in drawn)
        yield combined(drawn, f"control {index} of {ablation.name}: {names}", control_of=ablation.name)


def _of_number(ablation: Ablation, others: Sequence[Ablation], rng: random.Random) -> Iterator[list[Ablation]]:
    """Different sets of as many parts, in random order."""
    count = len(ablation.parts)
    if math.comb(len(others), count) <= _FEW:
        listed = list(map(list, combinations(others, count)))
        yield from rng.sample(listed, len(listed))
        return
    known = set()
    while True:  # there are so many that a new one is soon drawn
        drawn = tuple(sorted(rng.sample(range(len(others)), count)))
        if drawn not in known:
            known.add(drawn)
            yield [others[index] for index in drawn]


def _of_size(ablation: Ablation, others: Sequence[Ablation], rng: random.Random) -> Iterator[list[Ablation]]:
    """Different sets with as many parameters, as far as they are found: parts are drawn as long as they fit."""
    least, most = ((1 + sign * TOLERANCE) * ablation.parameters for sign in (-1, 1))
    known = set()
    for _ in range(_DRAWS if ablation.parameters else 0):
        chosen, total = [], 0
        for index in rng.sample(range(len(others)), len(others)):
            if total + others[index].parameters <= most:
                chosen.append(index)
                total += others[index].parameters
        drawn = tuple(sorted(chosen))
        if total >= least and drawn not in known:
            known.add(drawn)
            yield [others[index] for index in drawn]
