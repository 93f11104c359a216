"""`Ablation`: interventions on named parts of a model, applied together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenlab.errors import BadArgument
from qwenlab.interventions.base import Intervention
from qwenlab.tasks.arguments import named_differently


@dataclass(frozen=True)
class Ablation:
    """Interventions that are applied together, and the parts of the model that they change.

    name           its name in results
    interventions  in the order in which they act
    unit           the kind of part: one of `UNITS`, or "set" for several parts
    parts          paths such as "layers.3", "layers.3.mixer", "layers.3.mixer.heads[0]"
    layer          index of the part's layer; -1 for several layers
    kind           mixer of that layer, or of all of them; "" if they differ
    parameters     number of parameters of the parts
    control_of     name of the ablation of which this is a matched random control; "" for none
    """

    name: str
    interventions: tuple[Intervention, ...]
    unit: str
    parts: tuple[str, ...]
    layer: int
    kind: str
    parameters: int
    control_of: str = ""

    @property
    def intervention(self) -> str:
        """The expressions that create the interventions."""
        return ", ".join(map(str, self.interventions))

    @property
    def lowest_layer(self) -> int:
        """Index of the lowest layer that its parts are in; 0 where a part does not name one."""
        found = [re.match(r"layers\.(\d+)\b", part) for part in self.parts]
        return min((int(match[1]) if match else 0 for match in found), default=0)

    def overlaps(self, other: Ablation) -> bool:
        """Whether a part of one is, contains or is in a part of the other: a layer its mixer, a mixer its heads."""
        return any(_within(one, two) or _within(two, one) for one in self.parts for two in other.parts)


def combined(ablations: Sequence[Ablation], name: str, *, control_of: str = "") -> Ablation:
    """Several ablations as one. Raises BadArgument for an empty list, equal names, or ablations that overlap."""
    check_ablations(f"combined(ablations, {name!r})", ablations)
    pairs = ((one, two) for index, one in enumerate(ablations) for two in ablations[:index])
    if clash := next((f"{two.name} and {one.name} overlap" for one, two in pairs if one.overlaps(two)), ""):
        raise BadArgument(f"combined({name!r}): {clash}.\nGive ablations of different parts.")
    layers, kinds = {ablation.layer for ablation in ablations}, {ablation.kind for ablation in ablations}
    return Ablation(
        name=name,
        interventions=tuple(one for ablation in ablations for one in ablation.interventions),
        unit=ablations[0].unit if len(ablations) == 1 else "set",
        parts=tuple(part for ablation in ablations for part in ablation.parts),
        layer=layers.pop() if len(layers) == 1 else -1,
        kind=kinds.pop() if len(kinds) == 1 else "",
        parameters=sum(ablation.parameters for ablation in ablations),
        control_of=control_of,
    )


def check_ablations(where: str, ablations: Any) -> None:
    """Raise BadArgument unless this is a list of ablations with different names."""
    listed = isinstance(ablations, Sequence) and len(ablations) > 0
    if not listed or not all(isinstance(item, Ablation) for item in ablations):
        raise BadArgument(f"{where}: give a list of at least one ablation, for example from qwenlab.ablations.units.")
    named_differently(where, "ablations", ablations)


def coordinates(ablations: Sequence[Ablation]) -> dict[str, Any]:
    """Coordinates along `ablation`: all fields of each ablation but its interventions and parts."""
    fields = ("name", "unit", "layer", "kind", "intervention", "control_of", "parameters")
    return {
        "ablation" if field == "name" else field: ("ablation", [getattr(ablation, field) for ablation in ablations])
        for field in fields
    }


def _within(part: str, whole: str) -> bool:
    return part == whole or part.startswith((f"{whole}.", f"{whole}["))
