"""Edits of routed experts: which of them a token gets, and with what weights.

Every router of transformers takes the softmax of its logits over all experts, chooses the k largest and makes their
weights sum to 1 (unless `norm_topk_prob=False`, which qwen3_next knows). Edits that change the choice make it anew by
that rule, from changed logits: what is recorded of a router under them is one consistent choice.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.sites import find_sites
from qwenlab.errors import BadArgument, CannotIntervene, UnknownLayer
from qwenlab.interventions.base import Intervention, indices
from qwenlab.interventions.call_arguments import Routed, rerouted
from qwenlab.interventions.module_sites import InterventionPoints


@dataclass(frozen=True)
class ExpertIntervention(Intervention):
    """A change in layers with routed experts.

    layers  their indices; by default all that have routed experts, dense layers in between left alone
    """

    layers: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raises BadArgument for layers that are no indices."""
        if self.layers is not None:
            object.__setattr__(self, "layers", indices(self.layers, f"{type(self).__name__}(layers=...)"))

    def layers_in(self, decoder: Decoder) -> Sequence[int]:
        """The chosen layers. Raises CannotIntervene without routed experts, UnknownLayer for a layer without them."""
        able = decoder.layers_with("experts")
        if not able:
            raise CannotIntervene(
                f"{self}: no layer of this {type(decoder.module).__name__} has routed experts.\n"
                'Change the dense MLPs by their sites: "layers.*.mlp".'
            )
        if unknown := [layer for layer in self.layers or () if layer not in able]:
            raise UnknownLayer(f"{self} names layers {unknown}; the layers with routed experts are {list(able)}.")
        return able if self.layers is None else self.layers


@dataclass(frozen=True)
class RouterEdit(ExpertIntervention):
    """Another choice by the routers."""

    def place(self, places: InterventionPoints) -> None:
        """At the router of each layer. Raises CannotIntervene, UnknownLayer and BadArgument."""
        for layer in self.layers_in(places.decoder):
            where, router = f"layers.{layer}.router", places.decoder.part(layer, "router")
            places.routed(layer, where, partial(self._changed, where, router, self.prepare(where, router)))

    def prepare(self, where: str, router: Any) -> Any:
        """What `new` needs of this router, made when the block begins. Raises BadArgument for what does not fit it."""
        return None

    @abstractmethod
    def new(self, routed: Routed, router: Any, prepared: Any) -> Routed:
        """What the router returns now."""

    def _changed(self, where: str, router: Any, prepared: Any, routed: Routed, reading: TokenBatch) -> Routed:
        new = self.new(routed, router, prepared)
        if new.logits.gather(-1, new.chosen).isneginf().any():
            left, k = int((~new.logits[0].isneginf()).sum()), new.chosen.shape[-1]
            raise CannotIntervene(
                f"{self}: {where} chooses {k} experts a token, and {left} are left to choose from.\n"
                f"Leave {k} unmasked at least, or let a token have fewer: TopK(n) before it."
            )
        return new


@dataclass(frozen=True)
class MaskExperts(RouterEdit):
    """Experts that are never chosen (knock-out): their logits are -inf before the choice, others take their places.

    Site: the router, whose choice is made anew. Cache: experts come after the mixer, and the layer keeps nothing of
    them; the layers above keep what comes of the change.

    experts  their numbers; as many as a token is given must be left
    layers   only these; by default all that have routed experts, dense layers in between left alone
    """

    experts: Sequence[int]

    def __post_init__(self) -> None:
        """Raises BadArgument for experts that are no indices."""
        super().__post_init__()
        object.__setattr__(self, "experts", indices(self.experts, "MaskExperts(experts)"))

    def prepare(self, where: str, router: Any) -> None:
        """Nothing but a check. Raises BadArgument for experts that are not there."""
        check_experts(self, self.experts, where, router)

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        """The choice among the others."""
        logits = routed.logits.index_fill(-1, _tensor(self.experts, routed.logits), -torch.inf)
        return rerouted(router, logits, routed.chosen.shape[-1])


@dataclass(frozen=True)
class TopK(RouterEdit):
    """Another number of experts a token than the config's, the same rule: the n of largest probability.

    Site, cache and layers as in `MaskExperts`.

    n  from 1 to the number of experts
    """

    n: int

    def __post_init__(self) -> None:
        """Raises BadArgument for what is no number of experts."""
        super().__post_init__()
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise BadArgument(f"TopK(n={self.n!r}): give a whole number of experts, 1 or more.")

    def prepare(self, where: str, router: Any) -> None:
        """Nothing but a check. Raises BadArgument for more experts than there are."""
        if self.n > router.num_experts:
            raise BadArgument(f"{self}: {where} has {router.num_experts} experts to choose from, not {self.n}.")

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        """The choice of n."""
        return rerouted(router, routed.logits, self.n)


@dataclass(frozen=True)
class ForceExperts(RouterEdit):
    """The same experts for every token, with weights by the token's own logits, made to sum to 1.

    Site, cache and layers as in `MaskExperts`.

    experts  their numbers, exactly as many as a token is given
    """

    experts: Sequence[int]

    def __post_init__(self) -> None:
        """Raises BadArgument for experts that are no indices."""
        super().__post_init__()
        object.__setattr__(self, "experts", indices(self.experts, "ForceExperts(experts)"))

    def prepare(self, where: str, router: Any) -> None:
        """Nothing but a check. Raises BadArgument for experts that are not there."""
        check_experts(self, self.experts, where, router)

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        """The choice among these alone. Raises CannotIntervene where a token is given another number of experts."""
        if (k := routed.chosen.shape[-1]) != len(self.experts):
            raise CannotIntervene(
                f"{self} names {len(self.experts)} experts, and a token is given {k}.\n"
                f"Name {k}, or put TopK({len(self.experts)}) before it."
            )
        others = [expert for expert in range(router.num_experts) if expert not in self.experts]
        logits = routed.logits.index_fill(-1, _tensor(others, routed.logits), -torch.inf)
        return rerouted(router, logits, k)


@dataclass(frozen=True)
class UniformRouter(RouterEdit):
    """The experts chosen stay, each with the weight 1/k: what is left when a router chooses, and does not weigh.

    Site: the weights that the router returns. Cache and layers: as in `MaskExperts`.
    """

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        """The same choice, even weights."""
        return replace(routed, weights=torch.full_like(routed.weights, 1 / routed.chosen.shape[-1]))


@dataclass(frozen=True)
class ShuffleRouter(RouterEdit):
    """A token gets other experts than those chosen for it: each layer's experts trade places, none keeps its own.

    Site: what the router returns. Cache and layers: as in `MaskExperts`.

    seed  of the permutation, drawn for each layer

    Weights, entropies, how even the loads are, who is chosen together and when a token changes experts all stay as
    they were; what goes is the match of an expert to its tokens. Not: the choice of another token of the same pass.
    That would show a token what comes after it, could do nothing to a decode step of one sequence, and would leave
    the busiest experts with their own tokens as often as they are busy. Where it is wanted, take the router's logits
    from other texts: `Resample("layers.*.router", of=taken)`.
    """

    seed: int = 0

    def prepare(self, where: str, router: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """By expert, whose place it takes, and the other way round. Raises CannotIntervene for a single expert."""
        if router.num_experts < 2:
            raise CannotIntervene(f"{self}: {where} has one expert, which cannot trade places.")
        generator = torch.Generator().manual_seed(zlib.crc32(f"{where} {self.seed}".encode()))
        ring = torch.randperm(router.num_experts, generator=generator)
        place = torch.empty_like(ring).scatter_(0, ring, ring.roll(-1))  # one ring through all: none stays where it was
        return place, place.argsort()

    def new(self, routed: Routed, router: Any, prepared: tuple[torch.Tensor, torch.Tensor]) -> Routed:
        """The same choice under other names."""
        place, whose = (each.to(routed.at) for each in prepared)
        return Routed(routed.logits[:, whose], routed.weights, place[routed.chosen])


@dataclass(frozen=True)
class NoSharedExpert(ExpertIntervention):
    """The shared expert adds nothing: its output is zero, and its gate opens on that.

    Site: layers.N.shared_expert. Cache and layers: as in `MaskExperts`.
    """

    def place(self, places: InterventionPoints) -> None:
        """At the shared expert of each layer. Raises CannotIntervene and UnknownLayer."""
        for layer in self.layers_in(places.decoder):
            (site,) = find_sites(places.decoder.module, f"layers.{layer}.shared_expert")
            places.value(site, lambda value, reading: torch.zeros_like(value))


def check_experts(edit: Intervention, experts: Sequence[int], where: str, router: Any) -> None:
    """Raise BadArgument unless a router has these experts."""
    if beyond := [expert for expert in experts if expert >= router.num_experts]:
        last = router.num_experts - 1
        raise BadArgument(f"{edit}: {where} has experts 0 to {last}; there is no expert {beyond[0]}.")


def _tensor(experts: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(experts), device=like.device)
