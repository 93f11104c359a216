"""Edits that put another value in the place of one: nothing, its mean, another token's, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import BadArgument, CannotIntervene, UnknownLayer
from qwenlab.interventions.activations import ActivationCache
from qwenlab.interventions.base import Intervention, ValueIntervention, at, indices
from qwenlab.interventions.module_sites import InterventionPoints
from qwenlab.interventions.token_rng import gaussian, uniform


@dataclass(frozen=True)
class Zero(ValueIntervention):
    """Zero in the place of a value: with "layers.3.mixer" the layer's mixer adds nothing to the stream.

    pattern, kind, heads, positions, cache  as in `ValueIntervention`
    """

    def new(self, value: torch.Tensor, prepared: Any, reading: TokenBatch) -> torch.Tensor:
        """Zeros."""
        return torch.zeros_like(value)


@dataclass(frozen=True)
class Scale(ValueIntervention):
    """A value times a number: 0 is `Zero`, 1 changes nothing.

    pattern, kind, heads, positions, cache  as in `ValueIntervention`
    by  the number
    """

    by: float = 1.0

    def __post_init__(self) -> None:
        """Raises BadArgument for what would change nothing."""
        super().__post_init__()
        if self.by == 1:
            raise BadArgument("Scale(by=1.0) changes nothing.\nGive the factor, for example by=0.5.")

    def new(self, value: torch.Tensor, prepared: Any, reading: TokenBatch) -> torch.Tensor:
        """The value times the factor."""
        return value * self.by


@dataclass(frozen=True)
class Mean(ValueIntervention):
    """The mean of a value over all tokens of a reference text, the same for every token: what is left of a part when it
    no longer tells one token from another.

    pattern, kind, heads, positions, cache  as in `ValueIntervention`
    over  `ActivationCache` taken of the same sites
    """

    over: ActivationCache | None = None

    def prepare(self, site: Site, places: InterventionPoints) -> torch.Tensor:
        """The mean at this site, [...]."""
        return required(self.over, self, "over").mean(site.name)

    def new(self, value: torch.Tensor, prepared: torch.Tensor, reading: TokenBatch) -> torch.Tensor:
        """The mean, at every token."""
        return prepared.to(value).expand_as(value)


@dataclass(frozen=True)
class Resample(ValueIntervention):
    """The value that a token of another text had, drawn anew for every token: as likely a value as any, and unrelated.

    pattern, kind, heads, positions, cache  as in `ValueIntervention`
    of    `ActivationCache` taken of the same sites, of this text (then other positions) or of others
    seed  of the draw, made for every site by the token's sequence and position: the same however texts are fed

    Chan et al. 2022 ("Causal scrubbing").
    """

    of: ActivationCache | None = None
    seed: int = 0

    def prepare(self, site: Site, places: InterventionPoints) -> tuple[str, torch.Tensor]:
        """All values taken at this site, [token, ...]."""
        return site.name, required(self.of, self, "of").tokens(site.name)

    def new(self, value: torch.Tensor, prepared: tuple[str, torch.Tensor], reading: TokenBatch) -> torch.Tensor:
        """One of them for each token."""
        name, pool = prepared
        drawn = (uniform(name, self.seed, reading) * len(pool)).long()
        return pool[drawn.to(pool.device)].to(value)


@dataclass(frozen=True)
class Noise(ValueIntervention):
    """Gaussian noise in the place of a value, of the value's own norm at each token (and head, where there are some).

    pattern, kind, heads, positions, cache  as in `ValueIntervention`
    seed  of the draw, made for every site by the token's sequence and position: the same however texts are fed
    """

    seed: int = 0

    def prepare(self, site: Site, places: InterventionPoints) -> str:
        """The site's name. Raises CannotIntervene where a value is one number."""
        if site.dims[-1] == "head":
            raise CannotIntervene(
                f"{self}: {site.name} is one number a head, between 0 and 1, with no direction to draw.\n"
                "Use resample, or set_gate."
            )
        return site.name

    def new(self, value: torch.Tensor, prepared: str, reading: TokenBatch) -> torch.Tensor:
        """Noise of the same norm."""
        drawn = gaussian(prepared, self.seed, reading, *value.shape[2:]).to(value.device)
        norm = torch.linalg.vector_norm(value.double(), dim=-1, keepdim=True)
        return (drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True) * norm).to(value.dtype)


@dataclass(frozen=True)
class Identity(Intervention):
    """Layers left out: what a layer is given is what comes out of it.

    layers  their indices

    Site: layers.N.residual. Cache: the layer still runs, and keeps of each token what it makes of the stream that it is
    given; nothing of that goes further. What is watched inside it is what it does with that stream.
    """

    layers: Sequence[int]

    def __post_init__(self) -> None:
        """Raises BadArgument for what are no indices."""
        object.__setattr__(self, "layers", indices(self.layers, "Identity(layers=...)"))

    def place(self, places: InterventionPoints) -> None:
        """Behind each of the layers. Raises UnknownLayer."""
        count = len(places.decoder.layers)
        for layer in self.layers:
            if layer >= count:
                raise UnknownLayer(f"{self}: this model has layers 0 to {count - 1}; there is no layer {layer}.")
            places.layer(layer, f"layers.{layer}.residual", lambda stream, value, reading: stream)


@dataclass(frozen=True)
class Patch(ValueIntervention):
    """A value recorded on one text, put in while another is read (activation patching): token by token, at the same
    positions.

    pattern, kind, heads, cache  as in `ValueIntervention`
    of         an `ActivationCache` of the same sites. One cached sequence serves for every sequence that is read.
               Several must be as many as are read, and are paired in the order in which they were read
    positions  as in `ValueIntervention`; by default all that the text has

    Vig et al. 2020 (arXiv:2004.12265); Meng et al. 2022 (arXiv:2202.05262).
    """

    of: ActivationCache | None = None

    def prepare(self, site: Site, places: InterventionPoints) -> tuple[torch.Tensor, torch.Tensor]:
        """The values taken at this site, [sequence, position, ...], and how long each sequence is."""
        values = required(self.of, self, "of")
        return values[site.name], values.lengths

    def new(self, value: torch.Tensor, prepared: Any, reading: TokenBatch) -> torch.Tensor:
        """The value taken at the same position. Raises BadArgument for sequences or lengths that do not fit."""
        taken, lengths = prepared
        rows = torch.tensor(list(reading.numbers)) if len(taken) > 1 else torch.zeros(value.shape[0], dtype=torch.int64)
        meant = at(reading, self.positions)
        meant = (reading.real if meant is None else meant).cpu()
        if int(rows.max()) >= len(taken):
            raise BadArgument(
                f"{self}: sequence {int(rows.max())} is read, and {len(taken)} were taken.\n"
                "Take one sequence for all, or as many as are read, in the same order."
            )
        position = torch.where(meant, reading.position.cpu(), 0)
        if bool((position >= lengths[rows][:, None]).any()):
            longest, row = int(position.max()), int((position - lengths[rows][:, None]).amax(dim=1).argmax())
            raise BadArgument(
                f"{self}: the text that is read has a token at position {longest}; the one that was taken has "
                f"{int(lengths[rows][row])} tokens.\nGive texts of one length, or positions=... that both have."
            )
        return taken[rows[:, None].to(taken.device), position.to(taken.device)].to(value)


def required(values: ActivationCache | None, edit: ValueIntervention, name: str) -> ActivationCache:
    """The values that an edit was given. Raises BadArgument for none."""
    if not isinstance(values, ActivationCache):
        raise BadArgument(
            f"{type(edit).__name__}({name}=...): give values taken by `take`:\n"
            f'with cache_activations(model, "{edit.pattern}") as taken: model(...); '
            f'then {type(edit).__name__}("{edit.pattern}", {name}=taken).'
        )
    return values
