"""Interventions that replace the value at a site: by zero, a multiple, a mean, noise, or the value of another token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import BadArgument, CannotIntervene, UnknownLayer
from qwenlab.interventions.activations import ActivationCache
from qwenlab.interventions.base import Intervention, ValueIntervention, check_indices, tokens_at
from qwenlab.interventions.points import InterventionPoints
from qwenlab.interventions.token_rng import gaussian, uniform


@dataclass(frozen=True)
class Zero(ValueIntervention):
    """Zero instead of the value: with "layers.3.mixer" the layer's mixer adds nothing to the residual stream.

    pattern, kind, heads, positions  as in `ValueIntervention`, which also says what layers cache
    """

    def new(self, value: torch.Tensor, prepared: Any, tokens: TokenBatch) -> torch.Tensor:
        return torch.zeros_like(value)


@dataclass(frozen=True)
class Scale(ValueIntervention):
    """The value times a factor: 0 is `Zero`, 1 changes nothing.

    pattern, kind, heads, positions  as in `ValueIntervention`, which also says what layers cache
    by  the factor
    """

    by: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == 1:
            raise BadArgument("Scale(by=1.0) changes nothing.\nGive the factor, for example by=0.5.")

    def new(self, value: torch.Tensor, prepared: Any, tokens: TokenBatch) -> torch.Tensor:
        return value * self.by


@dataclass(frozen=True)
class CacheIntervention(ValueIntervention):
    """Base class for interventions that put in values from an `ActivationCache`, which must be given."""

    cache: ActivationCache | None = None

    def required_cache(self) -> ActivationCache:
        """The cache. Raises BadArgument if it is missing."""
        if not isinstance(self.cache, ActivationCache):
            name = type(self).__name__
            raise BadArgument(
                f"{name}(cache=...): give an ActivationCache:\n"
                f'with cache_activations(model, "{self.pattern}") as cache: model(...); '
                f'then {name}("{self.pattern}", cache=cache).'
            )
        return self.cache


@dataclass(frozen=True)
class Mean(CacheIntervention):
    """The mean of the value over all tokens of another text: the part no longer distinguishes tokens.

    pattern, kind, heads, positions  as in `ValueIntervention`, which also says what layers cache
    cache  an `ActivationCache` of the same sites
    """

    def prepare(self, site: Site, points: InterventionPoints) -> torch.Tensor:
        """The mean at this site, [...]."""
        return self.required_cache().mean(site.name)

    def new(self, value: torch.Tensor, prepared: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
        return prepared.to(value).expand_as(value)


@dataclass(frozen=True)
class Resample(CacheIntervention):
    """The value of a random token of another text, drawn for every token: from the same distribution, but unrelated.

    pattern, kind, heads, positions  as in `ValueIntervention`, which also says what layers cache
    cache  an `ActivationCache` of the same sites, of this text (then other positions) or of others
    seed  of the draw, by site and the token's sequence and position: the same however texts are split into passes

    Chan et al. 2022 ("Causal scrubbing").
    """

    seed: int = 0

    def prepare(self, site: Site, points: InterventionPoints) -> tuple[str, torch.Tensor]:
        """The site's name, and all its cached values [token, ...]."""
        return site.name, self.required_cache().tokens(site.name)

    def new(self, value: torch.Tensor, prepared: tuple[str, torch.Tensor], tokens: TokenBatch) -> torch.Tensor:
        name, pool = prepared
        drawn = (uniform(name, self.seed, tokens) * len(pool)).long()
        return pool[drawn.to(pool.device)].to(value)


@dataclass(frozen=True)
class Noise(ValueIntervention):
    """Gaussian noise instead of the value, with the norm of the value at each token (and head, if the site has heads).

    pattern, kind, heads, positions  as in `ValueIntervention`, which also says what layers cache
    seed  of the draw, by site and the token's sequence and position: the same however texts are split into passes
    """

    seed: int = 0

    def prepare(self, site: Site, points: InterventionPoints) -> str:
        if site.dims[-1] == "head":
            raise CannotIntervene(
                f"{self}: {site.name} is one number per head, without a direction to draw.\nUse Resample or SetGate."
            )
        return site.name

    def new(self, value: torch.Tensor, prepared: str, tokens: TokenBatch) -> torch.Tensor:
        drawn = gaussian(prepared, self.seed, tokens, *value.shape[2:]).to(value.device)
        norm = torch.linalg.vector_norm(value.double(), dim=-1, keepdim=True)
        return (drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True) * norm).to(value.dtype)


@dataclass(frozen=True)
class Identity(Intervention):
    """Layers left out: the output of a layer is its input.

    layers  their indices

    Site: layers.N.residual. Cache: the layer still runs, and caches what it computes from its input; nothing of that
    reaches the next layer. A `watch` inside it shows what it computes from its input.
    """

    layers: Sequence[int]

    def place(self, points: InterventionPoints) -> None:
        check_indices(self.layers, len(points.decoder.layers), f"{self}: this model", "layer", UnknownLayer)
        for layer in self.layers:
            points.layer(layer, f"layers.{layer}.residual", lambda value, stream, tokens: stream)


@dataclass(frozen=True)
class Patch(CacheIntervention):
    """Activation patching: the value that the same position had in another text, token by token.

    pattern, kind, heads  as in `ValueIntervention`, which also says what layers cache
    cache      an `ActivationCache` of the same sites. A single cached sequence is used for every sequence; several must
               be as many as the model reads, and are paired in reading order
    positions  as in `ValueIntervention`; by default all of the text

    Vig et al. 2020 (arXiv:2004.12265); Meng et al. 2022 (arXiv:2202.05262).
    """

    def prepare(self, site: Site, points: InterventionPoints) -> tuple[torch.Tensor, torch.Tensor]:
        """The cached values at this site [sequence, position, ...], and the length of each sequence."""
        cache = self.required_cache()
        return cache[site.name], cache.lengths

    def new(self, value: torch.Tensor, prepared: Any, tokens: TokenBatch) -> torch.Tensor:
        cached, lengths = prepared
        rows = torch.tensor(list(tokens.numbers)) if len(cached) > 1 else torch.zeros(value.shape[0], dtype=torch.int64)
        selected = tokens_at(tokens, self.positions)
        selected = (tokens.real if selected is None else selected).cpu()
        if int(rows.max()) >= len(cached):
            raise BadArgument(
                f"{self}: the model reads sequence {int(rows.max())}, but the cache has {len(cached)} sequences.\n"
                "Cache one sequence for all, or as many as the model reads, in the same order."
            )
        position = torch.where(selected, tokens.position.cpu(), 0)
        if bool((position >= lengths[rows][:, None]).any()):
            longest, row = int(position.max()), int((position - lengths[rows][:, None]).amax(dim=1).argmax())
            raise BadArgument(
                f"{self}: the text has a token at position {longest}; the cached text has "
                f"{int(lengths[rows][row])} tokens.\nGive texts of one length, or positions=... that both have."
            )
        return cached[rows[:, None].to(cached.device), position.to(cached.device)].to(value)
