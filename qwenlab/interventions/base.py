"""Base classes of interventions: on the value at a site, on layers with one kind of mixer, on some of their heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch

from qwenlab.arguments import integer
from qwenlab.capture.layout import head_counts
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.checkpoint.sites import Site, find_sites
from qwenlab.errors import BadArgument, MissingPart, UnknownLayer
from qwenlab.interventions.points import InterventionPoints, heads_of

INDICES = ("layers", "heads", "positions", "experts")
"""Names of arguments that are lists of indices."""

_MIXERS = {DELTANET: "a DeltaNet mixer", ATTENTION: "a softmax-attention mixer"}


@dataclass(frozen=True)
class Intervention(ABC):
    """A change of the computation inside a model. It is a description: `intervene(model, ...)` carries it out.

    One that matches nothing in a model raises where the block begins, one that never acted where it ends. `str` and
    `repr` return the expression that creates it. Arguments named in `INDICES` are lists of indices.
    """

    def __post_init__(self) -> None:
        """Sort the indices, and check fields with metadata, which are the bounds of an `arguments.integer`."""
        for name in INDICES:
            if getattr(self, name, None) is not None:
                object.__setattr__(self, name, indices(getattr(self, name), f"{type(self).__name__}({name}=...)"))
        for field in fields(self):
            if field.metadata:
                integer(type(self).__name__, field.name, getattr(self, field.name), **field.metadata)

    def __init_subclass__(cls) -> None:
        """Give dataclasses the short `repr` of this class."""
        super().__init_subclass__()
        cls.__repr__ = Intervention.__str__  # type: ignore[assignment, method-assign]

    @abstractmethod
    def place(self, points: InterventionPoints) -> None:
        """Attach to the points of a model where this intervention acts. Raises where the model has none."""

    def __str__(self) -> str:
        """The expression that creates it: required arguments by position, others by name, defaults left out."""
        shown = []
        for field in sorted(fields(self), key=lambda field: field.default is not MISSING):
            value = getattr(self, field.name)
            written = repr(list(value) if isinstance(value, tuple) else value)
            if field.default is MISSING:
                shown.append(written)
            elif value is not field.default and not (isinstance(value, str | int | float) and value == field.default):
                shown.append(f"{field.name}={written}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class ValueIntervention(Intervention):
    """Base class for interventions that replace the value at the sites of a pattern; implement `new`.

    pattern    as in `find_sites`: "layers.3.mixer", "layers.*.mixer.heads", "layers.[0-3].mlp"; any site but
               attention's mixer.key
    kind       only layers with this mixer, "linear_attention" or "full_attention"
    heads      only these heads, at sites that have heads: "mixer.heads" ("mixer" is the sum over its heads)
    positions  only the tokens at these positions of their sequences; padding does not count

    Cache: of DeltaNet's mixer.key, mixer.value, mixer.beta and mixer.decay, and of attention's mixer.value, the layer
    caches the changed value. Every other site comes after the value that the layer caches, which stays as it was. The
    layers above read the changed stream, and cache what they compute from it.
    """

    pattern: str
    kind: str | None = None
    heads: Sequence[int] | None = None
    positions: Sequence[int] | None = None

    def place(self, points: InterventionPoints) -> None:
        """Attach to every site that the pattern matches. Raises UnknownSite, BadArgument and CannotIntervene."""
        for site in find_sites(points.decoder.module, self.pattern, self.kind):
            if self.heads is not None:
                check_heads(self.heads, heads_of(points.decoder, site), f"{self}: {site.name}")
            points.value(site, partial(self._change, site, self.prepare(site, points)))

    def prepare(self, site: Site, points: InterventionPoints) -> Any:
        """Whatever `new` needs at this site; called once, when the block begins."""
        return None

    @abstractmethod
    def new(self, value: torch.Tensor, prepared: Any, tokens: TokenBatch) -> torch.Tensor:
        """Return the new value at a site, of the shape of the old one.

        value     [batch, position, ...], the old value
        prepared  the result of `prepare` for this site
        tokens    the tokens that the pass reads

        Results for other heads and positions than the chosen ones are not used.
        """

    def _change(self, site: Site, prepared: Any, value: torch.Tensor, tokens: TokenBatch) -> torch.Tensor | None:
        selected = tokens_at(tokens, self.positions)
        if selected is not None and not selected.any():
            return None
        new = self.new(value, prepared, tokens)
        if selected is not None:
            new = torch.where(selected.reshape(*selected.shape, *[1] * (value.ndim - 2)), new, value)
        if self.heads is not None:
            new = torch.where(
                head_mask(self.heads, value.shape[2], value.device).reshape(-1, *[1] * (value.ndim - 3)), new, value
            )
        return new


@dataclass(frozen=True, kw_only=True)
class LayerIntervention(Intervention):
    """Base class for interventions on the layers with one kind of mixer, `mixer`.

    layers  only these layers; by default every layer of that kind
    """

    mixer: ClassVar[str] = DELTANET
    layers: Sequence[int] | None = None

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers that can be changed. Raises MissingPart."""
        if able := decoder.layers_of(self.mixer):
            return able
        raise MissingPart(
            f"{self} finds nothing to change: none of this model's {len(decoder.layers)} layers has "
            f"{_MIXERS[self.mixer]}.\nLeave it out."
        )

    def layers_in(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers that are changed. Raises UnknownLayer, and where none can be changed."""
        able = self.able(decoder)
        if unknown := [layer for layer in self.layers or () if layer not in able]:
            raise UnknownLayer(
                f"{self} names layers {unknown}; it changes layers {list(able)} of this model.\n"
                "Leave `layers` out to change all of them."
            )
        return able if self.layers is None else tuple(self.layers)


@dataclass(frozen=True, kw_only=True)
class HeadIntervention(LayerIntervention):
    """Base class for interventions on heads of the layers with one kind of mixer.

    heads  only these heads of each layer; of DeltaNet, value heads
    """

    heads: Sequence[int] | None = None

    def layers_in(self, decoder: Decoder) -> tuple[int, ...]:
        layers = super().layers_in(decoder)
        if self.heads is not None:
            check_heads(self.heads, head_counts(decoder, layers[0])[0], f"{self}: layers.{layers[0]}.mixer")
        return layers


def tokens_at(tokens: TokenBatch, positions: Sequence[int] | None) -> torch.Tensor | None:
    """bool [batch, position]: the real tokens at these positions (None: at all), or None for every column."""
    if positions is None:
        return None if tokens.whole else tokens.real

    def find() -> torch.Tensor:
        return tokens.real & torch.isin(tokens.position, torch.tensor(positions, device=tokens.position.device))

    return tokens.once((tokens_at, tuple(positions)), find)


def indices(values: Iterable[int] | int, where: str) -> tuple[int, ...]:
    """Sorted indices, each once. Raises BadArgument unless all are integers, 0 or more, and there is at least one."""
    if isinstance(values, int):
        raise BadArgument(f"{where}: {values} is one number; give a list of them, [{values}].")
    values = tuple(values)
    if not values or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in values):
        raise BadArgument(f"{where}: give at least one integer, each 0 or more; got {list(values)}.")
    return tuple(sorted(set(values)))


def head_mask(heads: Sequence[int] | None, count: int, device: torch.device) -> torch.Tensor:
    """bool [head]: which of `count` heads are among these; all for None."""
    mask = torch.full((count,), heads is None, device=device)
    if heads is not None:
        mask[list(heads)] = True
    return mask


def check_heads(heads: Sequence[int], count: int | None, where: str) -> None:
    """Raise BadArgument unless a site has these heads; `count` is its number of heads, None without a head axis."""
    if count is None:
        raise BadArgument(f"{where} has no heads: it is the sum over heads.\nName the site mixer.heads instead.")
    check_indices(heads, count, where, "head")


def check_indices(
    indices: Sequence[int], count: int, where: str, what: str, error: type[Exception] = BadArgument
) -> None:
    """Raise an error if an index is `count` or more; `what` is the noun for the things that it counts."""
    if beyond := [index for index in indices if index >= count]:
        raise error(f"{where} has {what}s 0 to {count - 1}; got {what} {beyond[0]}.")
