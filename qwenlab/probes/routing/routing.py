"""The routing probe: load, certainty, co-activation and switching of the routed experts of each layer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import CannotIntervene
from qwenlab.probes.accumulators import LayerSlice, Sums, counted
from qwenlab.probes.base import GROUPED, Probe, Reduced, summed
from qwenlab.probes.routing.choices import Choices
from qwenlab.probes.routing.windows import WINDOWS, Windows

MAX_PROBABILITIES = 2**22
"""Probabilities of experts in memory at a time (elements): those of a block of sampled tokens."""

_SHARED = ("shared_gate", "shared_norm", "routed_norm")
_CERTAIN = ("entropy", "topk_entropy", "margin", "shared_gate", "shared_share", "measured")
_PER_TOKEN = {
    "entropy": ("nat", "entropy of the router's softmax over all experts, summed over tokens"),
    "topk_entropy": ("nat", "entropy of the renormalised top-k weights, summed over tokens"),
    "margin": ("1", "probability of the k-th choice minus that of the next, summed over tokens"),
    "repeated": ("slot", "experts repeated from the token before, summed over pairs"),
    "shared_gate": ("1", "sigmoid of the shared expert's gate, summed over tokens"),
    "shared_share": ("1", "norm of the gated shared output over that plus the routed output's, summed over tokens"),
}


class Routing(Probe):
    """Load, certainty, co-activation and switching of the routed experts, from the router's own logits and choices.

    With p the softmax of the router's logits over all experts, and w the weights of the top k, renormalised:

    load, weight         how often each expert was among the top k; sum of its w
    entropy              of p, and of w, in nats;  margin: p of the k-th choice minus p of the (k+1)-th
    shared gate, share   sigmoid(shared_expert_gate); ||gated shared output|| / (that + ||routed output||)
    co-activation        tokens that chose both of two experts
    transition           tokens by their top choice in this layer and in the next watched layer
    repeated             experts of a token that its predecessor also chose
    distinct             number of experts chosen in aligned windows of 2 to 128 tokens (complete windows only)

    layers  only these layers
    every   measure entropies, margin and the shared expert of one token per block of this many (chosen by
            `sampled_steps.drawn`); 1 measures all. Choices are counted for every token.
    """

    name = "routing"
    reads = "a router"
    changing = ("_certain", "_choices", "_windows")

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 8) -> None:
        super().__init__(layers=layers, every=every)

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        return decoder.layers_with("router")

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        router = decoder.part(self.layers[0], "router")
        self.top_k, self.experts, self._top_k_seen = int(router.top_k), int(router.num_experts), False
        self.shared = decoder.part(self.layers[0], "shared_expert_gate") is not None
        count = len(self.layers)
        self._certain, self._choices, self._windows = Sums(count), Choices(count, self.experts), Windows(count)

    def sites(self, layer: int) -> Iterable[str]:
        return ("router.weights", "router.chosen", *self.sampled_sites(layer))

    def sampled_sites(self, layer: int) -> Iterable[str]:
        return ("router", *(("experts", "shared_expert", "shared_expert_gate") if self.shared else ()))

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced:
        """Return the choices of every token, and logits and shared-expert share of the sampled tokens."""
        logits, weights, chosen = _tensors(captured, "router", "router.weights", "router.chosen")
        self._check_top_k(chosen.shape[-1])
        sample = tokens.sample(self.every)
        reduced = {"weights": weights, "chosen": chosen, "logits": sample.of(logits)}
        if self.shared:
            routed, shared, gate = map(sample.of, _tensors(captured, "experts", "shared_expert", "shared_expert_gate"))
            reduced["shared_gate"] = torch.sigmoid(gate[..., 0].float())
            reduced |= {"shared_norm": _norm(shared), "routed_norm": _norm(routed)}
        return reduced

    def _check_top_k(self, k: int) -> None:
        """Set the number of experts per token, which an intervention may change; raise CannotIntervene if it varies."""
        if self._top_k_seen and k != self.top_k:
            raise CannotIntervene(
                f"Routing saw tokens with {self.top_k} experts and with {k}; its counts need one number for all.\n"
                "Use one watch per number of experts, with Routing(layers=[...]) for the layers that have it."
            )
        self.top_k, self._top_k_seen = k, True

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        chosen, weights = reduced["chosen"], reduced["weights"].float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        self._choices.add(where, chosen, weights, tokens)
        self._add_certainty(where, reduced, weights, tokens)
        self._windows.add(where, chosen, self.experts, tokens)

    def _add_certainty(self, where: LayerSlice, reduced: Reduced, weights: torch.Tensor, tokens: TokenBatch) -> None:
        """Add up entropies, and the margin of the last chosen expert over the best of the others."""
        sample, logits = tokens.sample(self.every), reduced["logits"]
        values = {"weights": sample.of(weights, axis=1), "chosen": sample.of(reduced["chosen"], axis=1)}
        values |= {name: reduced[name] for name in ("logits", *(_SHARED if self.shared else ()))}
        slots = logits.shape[2]
        most = max(1, MAX_PROBABILITIES // (len(logits) * tokens.batch * self.experts))
        for start in range(0, slots, most):
            at = slice(start, start + most)
            sampled = sample.tokens if most >= slots else sample.part(at).tokens
            certain = _certainty({name: value[:, :, at] for name, value in values.items()})
            self._certain.add(where, sampled, measured=torch.ones_like(certain["margin"]), **certain)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count = len(labels)

        def stacked(name: str) -> np.ndarray:
            return (self._certain if name in _CERTAIN else self._choices.sums).array(name, count)

        table = {name: each for name, each in _PER_TOKEN.items() if self.shared or not name.startswith("shared")}
        by_expert, by_window, by_pair = (*GROUPED, "expert"), (*GROUPED, "window"), ("layer", "expert")
        load, weight = self._choices.by_expert(count)
        distinct, windows = self._windows.arrays(count)
        transition = "tokens by their top choice in this and in the next layer watched"
        together, following = self._choices.by_pair()
        variables = summed(table, GROUPED, stacked) | {
            "tokens": (GROUPED, counted(stacked("tokens")), "token", "tokens read"),
            "measured": (GROUPED, counted(stacked("measured")), "token", "tokens whose certainty was measured"),
            "pairs": (GROUPED, counted(stacked("pairs")), "pair", "tokens with a token before them"),
            "load": (by_expert, counted(load), "slot", "times the expert was among the top k"),
            "weight_sum": (by_expert, weight, "1", "renormalised routing weight, summed over tokens"),
            "distinct_sum": (by_window, distinct, "expert", "distinct experts, summed over windows"),
            "windows": (by_window, windows, "window", "complete windows"),
            "coactivation": ((*by_pair, "expert_2"), together, "token", "tokens that chose both experts"),
            "transition": ((*by_pair, "expert_next"), following, "token", transition),
        }
        dataset = self.build_dataset(labels, variables, window=("window", np.array(WINDOWS), {"units": "token"}))
        return dataset.assign_attrs(top_k=self.top_k, experts=self.experts)


def _tensors(captured: Captured, *names: str) -> tuple[torch.Tensor, ...]:
    values = [captured[name] for name in names]
    assert all(isinstance(value, torch.Tensor) for value in values)
    return tuple(value for value in values if isinstance(value, torch.Tensor))


def _norm(output: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(output.float(), dim=-1)


def _certainty(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return entropies, margin, and the shared expert's gate and share of the output, [layer, batch, slot] each."""
    probability = values["logits"].float().softmax(dim=-1)
    # If every expert is chosen there are no others, and their largest probability counts as 0.
    rest = probability.scatter(-1, values["chosen"], 0).amax(dim=-1)
    certain = {
        "entropy": torch.special.entr(probability).sum(dim=-1),
        "topk_entropy": torch.special.entr(values["weights"]).sum(dim=-1),
        "margin": probability.gather(-1, values["chosen"]).amin(dim=-1) - rest,
    }
    if "shared_gate" in values:
        ours = values["shared_gate"] * values["shared_norm"]
        share = ours / (ours + values["routed_norm"]).clamp_min(torch.finfo(torch.float32).tiny)
        certain |= {"shared_gate": values["shared_gate"], "shared_share": share}
    return certain
