"""What an edit is, and the edits that put another value in the place of the one at a site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.sites import Site, find_sites
from qwenlab.errors import BadArgument
from qwenlab.interventions.module_sites import InterventionPoints, heads_of


@dataclass(frozen=True)
class Intervention(ABC):
    """A change of what happens inside a model. It is a description: `intervene(model, ...)` carries it out.

    One that matches nothing in a model raises where the block begins, one that never acted where it ends. `str` and
    `repr` give it as it is written.
    """

    def __init_subclass__(cls) -> None:
        """Keep dataclasses from writing out every argument."""
        super().__init_subclass__()
        cls.__repr__ = Intervention.__str__  # type: ignore[assignment, method-assign]

    @abstractmethod
    def place(self, places: InterventionPoints) -> None:
        """Ask for the places at which this edit changes something. Raises where the model has none."""

    def __str__(self) -> str:
        """As it is written: what it needs by position, the rest by name, arguments left at their defaults left out."""
        given = [_written(self, each) for each in sorted(fields(self), key=_is_optional) if not _is_default(self, each)]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True)
class ValueIntervention(Intervention):
    """Another value at the sites that a pattern names: what most edits are. One of your own says `new`.

    pattern    as in `find_sites`: "layers.3.mixer", "layers.*.mixer.heads", "layers.[0-3].mlp"; any site but
               attention's mixer.key
    kind       only layers with this mixer, "linear_attention" or "full_attention"
    heads      only these heads, at sites that have any: "mixer.heads" ("mixer" is what the heads give together)
    positions  only the tokens at these positions of their sequences; padding does not count

    Cache: of DeltaNet's mixer.key, mixer.value, mixer.beta and mixer.decay, and of attention's mixer.value, the layer
    keeps what came of the change. Every other site lies behind what the layer keeps, which stays as it was. The layers
    above get what came of the change at any site, and keep that.
    """

    pattern: str
    kind: str | None = None
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raises BadArgument for heads or positions that are no indices."""
        for name in ("heads", "positions"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, indices(getattr(self, name), f"{type(self).__name__}({name}=...)"))

    def place(self, places: InterventionPoints) -> None:
        """At every site that the pattern matches. Raises UnknownSite, BadArgument and CannotIntervene."""
        for site in find_sites(places.decoder.module, self.pattern, self.kind):
            if self.heads is not None:
                check_heads(self.heads, heads_of(places.decoder, site), f"{self}: {site.name}")
            places.value(site, partial(self._changed, site, self.prepare(site, places)))

    def prepare(self, site: Site, places: InterventionPoints) -> Any:
        """What `new` needs at this site, made when the block begins."""
        return None

    @abstractmethod
    def new(self, value: torch.Tensor, prepared: Any, reading: TokenBatch) -> torch.Tensor:
        """The new value [batch, position, ...] at a site; of other heads and positions it is thrown away."""

    def _changed(self, site: Site, prepared: Any, value: torch.Tensor, reading: TokenBatch) -> torch.Tensor | None:
        meant = at(reading, self.positions)
        if meant is not None and not meant.any():
            return None
        new = self.new(value, prepared, reading)
        if meant is not None:
            new = torch.where(meant.reshape(*meant.shape, *[1] * (value.ndim - 2)), new, value)
        if self.heads is not None:
            chosen = torch.zeros(value.shape[2], dtype=torch.bool, device=value.device)
            chosen[list(self.heads)] = True
            new = torch.where(chosen.reshape(-1, *[1] * (value.ndim - 3)), new, value)
        return new


def at(reading: TokenBatch, positions: Sequence[int] | None) -> torch.Tensor | None:
    """bool [batch, position]: the real tokens at these positions, None for any; None where that is every column."""
    if positions is None:
        return None if reading.whole else reading.real

    def find() -> torch.Tensor:
        return reading.real & torch.isin(reading.position, torch.tensor(positions, device=reading.position.device))

    return reading.once((at, tuple(positions)), find)


def indices(given: Iterable[int] | int, asked: str) -> tuple[int, ...]:
    """Whole numbers, 0 or more, at least one; `asked` says where. Raises BadArgument."""
    if isinstance(given, int):
        raise BadArgument(f"{asked}: {given} is one number; give a list of them, [{given}].")
    found = tuple(given)
    if not found or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in found):
        raise BadArgument(f"{asked}: give whole numbers, 0 or more, at least one; got {list(found)}.")
    return tuple(sorted(set(found)))


def check_heads(heads: Sequence[int], there: int | None, asked: str) -> None:
    """Raise BadArgument unless a site has these heads; `there` is how many it has, None for none."""
    if there is None:
        raise BadArgument(f"{asked} has no heads: they have been added up there.\nName the site mixer.heads for them.")
    if beyond := [head for head in heads if head >= there]:
        raise BadArgument(f"{asked} has {there} heads, 0 to {there - 1}; there is no head {beyond[0]}.")


def _is_optional(each: Any) -> bool:
    return each.default is not MISSING


def _is_default(edit: Intervention, each: Any) -> bool:
    value = getattr(edit, each.name)
    return value is each.default or (isinstance(value, str | int | float) and value == each.default)


def _written(edit: Intervention, each: Any) -> str:
    value = getattr(edit, each.name)
    written = repr(list(value) if isinstance(value, tuple) else value)
    return f"{each.name}={written}" if _is_optional(each) else written
