"""`Ablation`: edits of named parts of a model, tried together as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenlab.errors import BadArgument
from qwenlab.interventions.base import Intervention


@dataclass(frozen=True)
class Ablation:
    """Edits that are tried as one, and what they are of.

    name        what its scores are called
    edits       carried out together
    of          what kind of part: one of `UNITS`, or "set" for several
    parts       what it changes, by paths such as "layers.3", "layers.3.mixer", "layers.3.mixer.heads[0]"
    layer       of the part; -1 where there are several
    kind        mixer of that layer, or of all of them; "" where they differ
    parameters  of the parts
    control_of  the name of the ablation that this one is a matched random control of; "" for none
    """

    name: str
    edits: tuple[Intervention, ...]
    of: str
    parts: tuple[str, ...]
    layer: int
    kind: str
    parameters: int
    control_of: str = ""

    @property
    def edit(self) -> str:
        """The edits as they are written."""
        return ", ".join(map(str, self.edits))

    def overlaps(self, other: Ablation) -> bool:
        """Whether a part of one is, holds or lies in a part of the other: a layer its mixer, a mixer its heads."""
        return any(_within(one, two) or _within(two, one) for one in self.parts for two in other.parts)


def combined(ablations: Sequence[Ablation], name: str, *, control_of: str = "") -> Ablation:
    """Several ablations as one. Raises BadArgument for none, for two of one name, and for two that overlap."""
    check_ablations(f"combined(ablations, {name!r})", ablations)
    pairs = ((one, two) for index, one in enumerate(ablations) for two in ablations[:index])
    if clash := next((f"{two.name} and {one.name} overlap" for one, two in pairs if one.overlaps(two)), ""):
        raise BadArgument(f"combined({name!r}): {clash}.\nGive ablations of different parts.")
    layers, kinds = {each.layer for each in ablations}, {each.kind for each in ablations}
    return Ablation(
        name=name,
        edits=tuple(edit for each in ablations for edit in each.edits),
        of=ablations[0].of if len(ablations) == 1 else "set",
        parts=tuple(part for each in ablations for part in each.parts),
        layer=layers.pop() if len(layers) == 1 else -1,
        kind=kinds.pop() if len(kinds) == 1 else "",
        parameters=sum(each.parameters for each in ablations),
        control_of=control_of,
    )


def check_ablations(where: str, ablations: Any) -> None:
    """Refuse what is no list of ablations with names of their own."""
    listed = isinstance(ablations, Sequence) and len(ablations) > 0
    if not listed or not all(isinstance(each, Ablation) for each in ablations):
        raise BadArgument(f"{where}: give a list of at least one ablation; qwenlab.ablations.units makes them.")
    names = [each.name for each in ablations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadArgument(
            f"{where}: several ablations are named {', '.join(map(repr, twice))}.\nGive each a name of its own."
        )


def coordinates(ablations: Sequence[Ablation]) -> dict[str, Any]:
    """What each ablation is, as coordinates along `ablation`: its name, and its other fields but the parts."""
    fields = ("name", "of", "layer", "kind", "edit", "control_of", "parameters")
    return {
        "ablation" if field == "name" else field: ("ablation", [getattr(each, field) for each in ablations])
        for field in fields
    }


def _within(part: str, whole: str) -> bool:
    return part == whole or part.startswith((f"{whole}.", f"{whole}["))
