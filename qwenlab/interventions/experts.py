"""Interventions on routed experts: which experts each token gets, and with which weights.

Interventions that change the choice apply the router's own rule (`rerouted`) to changed logits: a recording of the
router then shows one consistent choice.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from qwenlab.capture.router import Routed, rerouted
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.sites import find_sites
from qwenlab.errors import BadArgument, CannotIntervene
from qwenlab.interventions.base import LayerIntervention, check_indices
from qwenlab.interventions.points import InterventionPoints


@dataclass(frozen=True)
class ExpertIntervention(LayerIntervention):
    """Base class for interventions on layers with routed experts; dense layers do not change."""

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers with routed experts. Raises CannotIntervene."""
        if able := decoder.layers_with("experts"):
            return able
        raise CannotIntervene(
            f"{self}: no layer of this {type(decoder.module).__name__} has routed experts.\n"
            'Change the dense MLPs by their sites: "layers.*.mlp".'
        )


@dataclass(frozen=True)
class RouterIntervention(ExpertIntervention):
    """Base class for interventions that replace the result of routers; implement `new`."""

    def place(self, points: InterventionPoints) -> None:
        for layer in self.layers_in(points.decoder):
            where, router = f"layers.{layer}.router", points.decoder.part(layer, "router")
            points.router(layer, where, partial(self._change, where, router, self.prepare(where, router)))

    def prepare(self, where: str, router: Any) -> Any:
        """Whatever `new` needs for this router; called once, when the block begins. Raises BadArgument."""
        return None

    @abstractmethod
    def new(self, routed: Routed, router: Any, prepared: Any) -> Routed:
        """Return the new result of the router, given the old one and the result of `prepare`."""

    def _change(self, where: str, router: Any, prepared: Any, routed: Routed, tokens: TokenBatch) -> Routed:
        new = self.new(routed, router, prepared)
        if new.logits.gather(-1, new.chosen).isneginf().any():
            left, k = int((~new.logits[0].isneginf()).sum()), new.chosen.shape[-1]
            raise CannotIntervene(
                f"{self}: {where} chooses {k} experts per token, and only {left} remain.\n"
                f"Leave at least {k} unmasked, or choose fewer per token: TopK(n) before it."
            )
        return new


@dataclass(frozen=True)
class _NamedExperts(RouterIntervention):
    """Base class for interventions on certain experts."""

    experts: Sequence[int]

    def prepare(self, where: str, router: Any) -> None:
        check_indices(self.experts, router.num_experts, f"{self}: {where}", "expert")

    def masked(self, routed: Routed, router: Any, experts: Sequence[int]) -> Routed:
        """The choice among all experts but these."""
        logits = routed.logits.index_fill(-1, torch.tensor(experts, device=routed.device), -torch.inf)
        return rerouted(router, logits, routed.chosen.shape[-1])


@dataclass(frozen=True)
class MaskExperts(_NamedExperts):
    """Experts that are never chosen (knock-out): their logits are -inf before the choice.

    Site: the router, which chooses among the others. Cache: experts come after the mixer, and the layer caches nothing
    of them; the layers above cache what they compute from the changed stream.

    experts  their indices; at least as many experts as a token gets must remain
    layers   only these; by default all that have routed experts; dense layers do not change
    """

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        return self.masked(routed, router, self.experts)


@dataclass(frozen=True)
class TopK(RouterIntervention):
    """Another number of experts per token than the config's, by the same rule: the n of largest probability.

    Site, cache and layers as in `MaskExperts`.

    n  from 1 to the number of experts
    """

    n: int = field(metadata={"least": 1, "unit": "experts"})

    def prepare(self, where: str, router: Any) -> None:
        if self.n > router.num_experts:
            raise BadArgument(f"{self}: {where} has {router.num_experts} experts to choose from, not {self.n}.")

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        return rerouted(router, routed.logits, self.n)


@dataclass(frozen=True)
class ForceExperts(_NamedExperts):
    """The same experts for every token, with weights from the token's own logits that sum to 1.

    Site, cache and layers as in `MaskExperts`.

    experts  their indices, exactly as many as a token gets
    """

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        if (k := routed.chosen.shape[-1]) != len(self.experts):
            raise CannotIntervene(
                f"{self} names {len(self.experts)} experts, and a token gets {k}.\n"
                f"Name {k}, or put TopK({len(self.experts)}) before it."
            )
        others = [expert for expert in range(router.num_experts) if expert not in self.experts]
        return self.masked(routed, router, others)


@dataclass(frozen=True)
class UniformRouter(RouterIntervention):
    """The chosen experts with equal weights 1/k: the router chooses, and does not weigh.

    Site: the weights that the router returns. Cache and layers: as in `MaskExperts`.
    """

    def new(self, routed: Routed, router: Any, prepared: None) -> Routed:
        return replace(routed, weights=torch.full_like(routed.weights, 1 / routed.chosen.shape[-1]))


@dataclass(frozen=True)
class ShuffleRouter(RouterIntervention):
    """A token gets other experts than the router chose: the experts of each layer are permuted, without fixed points.

    Site: what the router returns. Cache and layers: as in `MaskExperts`.

    seed  of the permutation, drawn for each layer

    Weights, entropies, load balance, co-activation and switch rate stay the same; only the match of experts to tokens
    is lost. It does not use the choice of another token of the same pass: that would show a token its future, could
    not change a decode step of one sequence, and would leave the busiest experts many of their own tokens. For the
    choices of other tokens, take the router's logits from other texts: `Resample("layers.*.router", cache=cache)`.
    """

    seed: int = 0

    def prepare(self, where: str, router: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The permutation [expert] and its inverse."""
        if router.num_experts < 2:
            raise CannotIntervene(f"{self}: {where} has one expert; a permutation needs two.")
        generator = torch.Generator().manual_seed(zlib.crc32(f"{where} {self.seed}".encode()))
        ring = torch.randperm(router.num_experts, generator=generator)
        permutation = torch.empty_like(ring).scatter_(0, ring, ring.roll(-1))  # one cycle: no fixed point
        return permutation, permutation.argsort()

    def new(self, routed: Routed, router: Any, prepared: tuple[torch.Tensor, torch.Tensor]) -> Routed:
        permutation, inverse = (indices.to(routed.device) for indices in prepared)
        return Routed(routed.logits[:, inverse], routed.weights, permutation[routed.chosen])


@dataclass(frozen=True)
class NoSharedExpert(ExpertIntervention):
    """The shared expert adds nothing: its output, which its gate multiplies, is zero.

    Site: layers.N.shared_expert. Cache and layers: as in `MaskExperts`.
    """

    def place(self, points: InterventionPoints) -> None:
        for layer in self.layers_in(points.decoder):
            (site,) = find_sites(points.decoder.module, f"layers.{layer}.shared_expert")
            points.value(site, lambda value, tokens: torch.zeros_like(value))
