"""Matched random controls: the effect of ablating as much elsewhere."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, combined
from qwenlab.ablations.match import MATCHES, Match
from qwenlab.arguments import choice, integer
from qwenlab.errors import BadArgument

TOLERANCE = 0.1
"""Largest relative difference between the parameters of a control and of its ablation."""

_MOST_LISTED = 1000  # with more sets, draw them instead of listing all
_DRAWS = 200


def controls(
    ablations: Sequence[Ablation],
    pool: Sequence[Ablation],
    *,
    match: Match = "number",
    number: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> list[Ablation]:
    """For each ablation, `number` different random sets of other parts that match it, or as many as there are.

    pool    ablations of single parts that do not overlap, from which the sets are drawn; those that overlap with the
            ablation are left out
    match   "number": as many parts; "kind": as many, in layers with the same kind of mixer; "parameters": any number of
            parts with as many parameters, within 10 %
    seed    of the draws of each ablation, which do not depend on the other items or the order of either list

    Raises BadArgument if an ablation has no match at all: its effect could then be that of any other parts.
    """
    found, refused = matched_controls(ablations, pool, match=match, number=number, seed=seed, progress=progress)
    if refused:
        raise next(iter(refused.values()))
    return found


def matched_controls(
    ablations: Sequence[Ablation], pool: Sequence[Ablation], *, match: Match, number: int, seed: int, progress: bool
) -> tuple[list[Ablation], dict[str, BadArgument]]:
    """What `controls` returns, and by name of each ablation that nothing matches, the error that says so."""
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
    drawn_from, found, refused = _Pool(pool), list[Ablation](), dict[str, BadArgument]()
    bar = tqdm(ablations, unit="ablation", desc="drawing controls", delay=1, disable=not progress)
    for ablation in bar:
        try:
            found += _of(ablation, drawn_from, match, number, seed)
        except BadArgument as error:
            refused[ablation.name] = error
    return found, refused


def _overlapping(pool: Sequence[Ablation]) -> tuple[str, str] | None:
    """The names of two ablations of one part each that overlap, if any."""
    names: dict[str, str] = {}
    for ablation in pool:
        (part,) = ablation.parts
        if part in names:
            return names[part], ablation.name
        names[part] = ablation.name
    for part, name in names.items():
        for whole in _above(part):
            if whole in names:
                return names[whole], name
    return None


def _above(part: str) -> Iterator[str]:
    """The parts that contain a part: "layers.3" and "layers.3.mixer" of "layers.3.mixer.heads[0]", and so on."""
    return (part[: end.start()] for end in re.finditer(r"[.\[]", part))


class _Pool:
    """Parts to draw from, in the order of the model, and where in it the parts are that overlap with another."""

    def __init__(self, parts: Sequence[Ablation]) -> None:
        self.parts = sorted(parts, key=lambda part: (part.layer, part.parts))
        self._kinds = np.array([part.kind for part in self.parts])
        self._places = {part.parts[0]: place for place, part in enumerate(self.parts)}
        self._inside: dict[str, list[int]] = {}
        for part, place in self._places.items():
            for whole in (part, *_above(part)):
                self._inside.setdefault(whole, []).append(place)

    def others(self, ablation: Ablation, match: Match) -> list[int]:
        """The places of the parts that do not overlap with an ablation and are of the kind that `match` asks for."""
        out = np.zeros(len(self.parts), dtype=bool)
        for part in ablation.parts:
            out[self._inside.get(part, [])] = True
            out[[self._places[whole] for whole in _above(part) if whole in self._places]] = True
        if match == "kind":
            out |= self._kinds != ablation.kind
        places: list[int] = np.flatnonzero(~out).tolist()
        return places


def _of(ablation: Ablation, pool: _Pool, match: Match, number: int, seed: int) -> Iterator[Ablation]:
    others = pool.others(ablation, match)
    rng = random.Random(f"controls-{seed}-{ablation.name}-{match}")
    if match == "parameters":
        sets = _of_size(ablation.parameters, [pool.parts[place].parameters for place in others], rng)
    else:
        sets = _of_number(len(ablation.parts), len(others), rng)
    chosen = list(islice(sets, number))
    if not chosen:
        raise BadArgument(
            f"controls(match={match!r}): {ablation.name!r} has {len(ablation.parts)} parts and "
            f"{ablation.parameters:,} parameters; no set of the {len(others)} other parts matches that.\n"
            "Use another match=, draw among other parts, or leave this ablation without a control."
        )
    for index, drawn in enumerate(chosen):
        parts = [pool.parts[others[one]] for one in drawn]
        label = " + ".join(part.name for part in parts)
        yield combined(parts, f"control {index} of {ablation.name}: {label}", control_of=ablation.name)


def _of_number(count: int, others: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Different sets of `count` of the other parts, in random order."""
    if math.comb(others, count) <= _MOST_LISTED:
        listed = list(combinations(range(others), count))
        yield from rng.sample(listed, len(listed))
        return
    seen = set()
    while True:  # with many sets, a new one is soon drawn
        drawn = tuple(sorted(rng.sample(range(others), count)))
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


def _of_size(parameters: int, others: Sequence[int], rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Different sets with as many parameters, as far as draws find them: parts are added as long as they fit.

    others  the parameters of each other part
    """
    least, most = ((1 + sign * TOLERANCE) * parameters for sign in (-1, 1))
    seen = set()
    for _ in range(_DRAWS if parameters else 0):
        chosen, total = [], 0
        for index in rng.sample(range(len(others)), len(others)):
            if total + others[index] <= most:
                chosen.append(index)
                total += others[index]
        drawn = tuple(sorted(chosen))
        if total >= least and drawn not in seen:
            seen.add(drawn)
            yield drawn
