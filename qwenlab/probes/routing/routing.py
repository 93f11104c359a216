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
from qwenlab.probes.accumulators import LayerSlice, Sums, Totals, counted
from qwenlab.probes.base import GROUPED, Probe, Reduced, summed
from qwenlab.probes.routing.windows import WINDOWS, Windows

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
    changing = ("_sums", "_certain", "_windows", "_coactivation", "_transition")

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
        self._sums, self._certain, self._windows = Sums(count), Sums(count), Windows(count)
        self._coactivation, self._transition = Totals(count), Totals(count)

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
            reduced |= _shared(*map(sample.of, _tensors(captured, "experts", "shared_expert", "shared_expert_gate")))
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
        zeros = weights.new_zeros(*chosen.shape[:-1], self.experts)
        hot = tokens.masked(zeros.scatter(-1, chosen, 1.0), axis=1)  # [layer, batch, position, expert]
        ones, by_expert = torch.ones_like(chosen[..., 0]), zeros.scatter(-1, chosen, weights)
        repeats = self._repeats(where, chosen, hot, tokens)
        self._sums.add(where, tokens, tokens=ones, load=hot, weight=by_expert, **repeats)
        self._add_certainty(where, reduced, weights, hot, tokens)
        flat = hot.flatten(1, 2)
        self._coactivation.add(where, flat.transpose(1, 2) @ flat)
        self._add_transition(where, chosen, weights, tokens)
        self._windows.add(where, hot > 0, tokens)

    def _add_certainty(
        self, where: LayerSlice, reduced: Reduced, weights: torch.Tensor, hot: torch.Tensor, tokens: TokenBatch
    ) -> None:
        """Add up entropies, and the margin of the last chosen expert over the best of the others."""
        sample = tokens.sample(self.every)
        weights, chosen, hot = (sample.of(each, axis=1) for each in (weights, reduced["chosen"], hot))
        probability = reduced["logits"].float().softmax(dim=-1)
        # If every expert is chosen there are no others, and their largest probability counts as 0.
        rest = probability.masked_fill(hot > 0, 0).amax(dim=-1)
        certain = {
            "entropy": torch.special.entr(probability).sum(dim=-1),
            "topk_entropy": torch.special.entr(weights).sum(dim=-1),
            "margin": probability.gather(-1, chosen).amin(dim=-1) - rest,
        } | {name: reduced[name] for name in ("shared_gate", "shared_share") if name in reduced}
        self._certain.add(where, sample.tokens, measured=torch.ones_like(rest), **certain)

    def _add_transition(
        self, where: LayerSlice, chosen: torch.Tensor, weights: torch.Tensor, tokens: TokenBatch
    ) -> None:
        """Count pairs of the top choice in a layer and in the next watched layer."""
        top = chosen.gather(-1, weights.argmax(dim=-1, keepdim=True))[..., 0]
        layers = slice(where.start, where.stop - 1)
        name = (id(self), "top")
        before: tuple[int, torch.Tensor] | None = tokens.carry.get(name)
        tokens.carry[name] = (layers.stop, top[-1])
        if before is not None and before[0] == where.start - 1 and before[1].shape == top[0].shape:
            top, layers = torch.cat([before[1].to(top.device)[None], top]), slice(before[0], layers.stop)
        if len(top) > 1:
            pair = (top[:-1] * self.experts + top[1:]).flatten(1)
            counts = torch.zeros(len(pair), self.experts**2, device=top.device)
            counts.scatter_add_(1, pair, tokens.real.flatten().float().expand_as(pair))
            self._transition.add(layers, counts.unflatten(1, (self.experts, self.experts)))

    def _repeats(
        self, where: LayerSlice, chosen: torch.Tensor, hot: torch.Tensor, tokens: TokenBatch
    ) -> dict[str, torch.Tensor]:
        """Return the number of experts that each token shares with the one before it, also across calls."""
        newest = tokens.carried((id(self), "newest"), len(self.layers), hot[:, :, 0])
        last = newest[where].to(hot.device)
        with_last = torch.cat([last[:, :, None], hot], dim=2)
        cell = (tokens.before[..., None] * self.experts + chosen).flatten(2)
        repeated = with_last.flatten(2).gather(2, cell).unflatten(2, (-1, chosen.shape[-1])).sum(dim=-1)
        now = hot.gather(2, tokens.last[None, :, None, None].expand(len(hot), -1, 1, self.experts))[:, :, 0]
        newest[where] = torch.where(tokens.idle[:, None], last, now).to(newest.device)
        return {"repeated": torch.where(tokens.follows, repeated, 0), "pairs": tokens.follows.expand_as(repeated)}

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count = len(labels)

        def stacked(name: str, *shape: int) -> np.ndarray:
            return (self._certain if name in _CERTAIN else self._sums).array(name, count, *shape)

        table = {name: each for name, each in _PER_TOKEN.items() if self.shared or not name.startswith("shared")}
        by_expert, by_window, by_pair = (*GROUPED, "expert"), (*GROUPED, "window"), ("layer", "expert")
        load, weight = counted(stacked("load", self.experts)), stacked("weight", self.experts)
        distinct, windows = self._windows.arrays(count)
        transition = "tokens by their top choice in this and in the next layer watched"
        pairs = (counts.array(self.experts, self.experts) for counts in (self._coactivation, self._transition))
        together, following = map(counted, pairs)
        variables = summed(table, GROUPED, stacked) | {
            "tokens": (GROUPED, counted(stacked("tokens")), "token", "tokens read"),
            "measured": (GROUPED, counted(stacked("measured")), "token", "tokens whose certainty was measured"),
            "pairs": (GROUPED, counted(stacked("pairs")), "pair", "tokens with a token before them"),
            "load": (by_expert, load, "slot", "times the expert was among the top k"),
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


def _shared(routed: torch.Tensor, shared: torch.Tensor, logit: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return openness of the shared expert's gate, and its share of the output."""
    gate = torch.sigmoid(logit[..., 0].float())
    ours = gate * torch.linalg.vector_norm(shared.float(), dim=-1)
    both = ours + torch.linalg.vector_norm(routed.float(), dim=-1)
    return {"shared_gate": gate, "shared_share": ours / both.clamp_min(torch.finfo(torch.float32).tiny)}
