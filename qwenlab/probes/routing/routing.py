"""The routing probe: which experts each layer chooses, how surely, with whom, and what changes between tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import CannotIntervene
from qwenlab.probes.accumulators import At, Sums, counted
from qwenlab.probes.base import Probe, Reduced, Variable
from qwenlab.probes.routing.windows import WINDOWS, Windows

_CERTAIN = ("entropy", "topk_entropy", "margin", "shared_gate", "shared_share", "measured")
_PER_TOKEN = {
    "entropy": ("nat", "entropy of the router's softmax over all experts, summed over tokens"),
    "topk_entropy": ("nat", "entropy of the renormalised top-k weights, summed over tokens"),
    "margin": ("1", "probability of the k-th choice minus that of the next, summed over tokens"),
    "kept": ("slot", "experts kept from the token before, summed over pairs"),
    "shared_gate": ("1", "sigmoid of the shared expert's gate, summed over tokens"),
    "shared_share": ("1", "norm of the gated shared output over that plus the routed output's, summed over tokens"),
}


class Routing(Probe):
    """Load, certainty, company and turnover of the routed experts, from the router's own logits and choices.

    With p the softmax of the router's logits over all experts, and w the weights of the top k, made to sum to 1:

    load, weight         times each expert was among the top k; sum of its w
    entropy              of p, and of w, in nats;  margin: p of the k-th choice minus p of the (k+1)-th
    shared gate, share   sigmoid(shared_expert_gate); ||gated shared output|| / (that + ||routed output||)
    co-activation        tokens that chose both of two experts
    transition           top choice here and in the next of the layers watched
    kept                 experts of a token that its predecessor also chose
    distinct             experts met in aligned windows of 2 to 128 tokens (complete windows only)

    layers  only these layers
    every   measure entropies, margin and the shared expert of one token of every so many (`reading.drawn` says which);
            1 measures all. Choices are counted of every token.
    """

    name = "routing"
    reads = "a router"

    def __init__(self, *, layers: Iterable[int] | None = None, every: int = 8) -> None:
        super().__init__(layers=layers, every=every)

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers with routed experts."""
        return decoder.layers_with("router")

    def start(self, decoder: Decoder) -> None:
        """Empty sums and counts for these layers."""
        super().start(decoder)
        router = decoder.part(self.layers[0], "router")
        self.top_k, self.experts, self._chose = int(router.top_k), int(router.num_experts), False
        self.shared = decoder.part(self.layers[0], "shared_expert_gate") is not None
        count = len(self.layers)
        self._sums, self._certain, self._windows = Sums(count), Sums(count), Windows(count)
        self._coactivation: torch.Tensor | None = None
        self._handover: torch.Tensor | None = None
        self._previous: tuple[int, torch.Tensor] | None = None

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """What the router says, and what routed and shared experts yield."""
        shared = ("routed", "shared", "shared_gate") if self.shared else ()
        return tuple(("mlp", name) for name in ("router", "weights", "chosen", *shared))

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced:
        """The choices of every token; of the sampled ones also the logits, and what the shared expert gives."""
        logits, weights, chosen = _tensors(notes, "router", "weights", "chosen")
        self._count_slots(chosen.shape[-1])
        sample = reading.sample(self.every)
        kept = {"weights": weights, "chosen": chosen, "logits": sample.of(logits)}
        if self.shared:
            kept |= _shared(*map(sample.of, _tensors(notes, "routed", "shared", "shared_gate")))
        return kept

    def _count_slots(self, k: int) -> None:
        """The number of experts per token, which an edit may change. Raises CannotIntervene unless all layers agree."""
        if self._chose and k != self.top_k:
            raise CannotIntervene(
                f"Routing saw tokens with {self.top_k} experts and with {k}; what it counts has one number for all.\n"
                "Watch them apart: give each number a watch of its own, and Routing the layers that have it."
            )
        self.top_k, self._chose = k, True

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up the choices of every token, and the certainty of the sampled ones."""
        chosen, weights = kept["chosen"], kept["weights"].float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        none = weights.new_zeros(*chosen.shape[:-1], self.experts)
        hot = reading.masked(none.scatter(-1, chosen, 1.0), axis=1)  # [layer, batch, position, expert]
        tokens, by_expert = torch.ones_like(chosen[..., 0]), none.scatter(-1, chosen, weights)
        turnover = self._turnover(where, chosen, hot, reading)
        self._sums.add(where, reading, tokens=tokens, load=hot, weight=by_expert, **turnover)
        self._look_at_certainty(where, kept, weights, hot, reading)
        flat = hot.flatten(1, 2)
        self._coactivation = self._accumulated(self._coactivation, where, flat.transpose(1, 2) @ flat)
        self._look_at_handover(where, chosen, weights, reading)
        self._windows.add(where, hot > 0, reading)

    def _look_at_certainty(
        self, where: At, kept: Reduced, weights: torch.Tensor, hot: torch.Tensor, reading: TokenBatch
    ) -> None:
        """Entropies, and by how much the last expert chosen leads the best of those that were not."""
        sample = reading.sample(self.every)
        weights, chosen, hot = (sample.of(each, axis=1) for each in (weights, kept["chosen"], hot))
        probability = kept["logits"].float().softmax(dim=-1)
        # Where every expert is chosen there is none to lead, and the largest of the rest is 0.
        rest = probability.masked_fill(hot > 0, 0).amax(dim=-1)
        certain = {
            "entropy": torch.special.entr(probability).sum(dim=-1),
            "topk_entropy": torch.special.entr(weights).sum(dim=-1),
            "margin": probability.gather(-1, chosen).amin(dim=-1) - rest,
        } | {name: kept[name] for name in ("shared_gate", "shared_share") if name in kept}
        self._certain.add(where, sample.reading, measured=torch.ones_like(rest), **certain)

    def _look_at_handover(self, where: At, chosen: torch.Tensor, weights: torch.Tensor, reading: TokenBatch) -> None:
        """Pairs of the top choice in a layer and in the next one watched."""
        top = chosen.gather(-1, weights.argmax(dim=-1, keepdim=True))[..., 0]
        givers = slice(where.start, where.stop - 1)
        before, self._previous = self._previous, (givers.stop, top[-1])
        if before is not None and before[0] == where.start - 1 and before[1].shape == top[0].shape:
            top, givers = torch.cat([before[1].to(top.device)[None], top]), slice(before[0], givers.stop)
        if len(top) > 1:
            pair = (top[:-1] * self.experts + top[1:]).flatten(1)
            counts = torch.zeros(len(pair), self.experts**2, device=top.device)
            counts.scatter_add_(1, pair, reading.real.flatten().float().expand_as(pair))
            counts = counts.unflatten(1, (self.experts, self.experts))
            self._handover = self._accumulated(self._handover, givers, counts)

    def _turnover(
        self, where: At, chosen: torch.Tensor, hot: torch.Tensor, reading: TokenBatch
    ) -> dict[str, torch.Tensor]:
        """Experts shared by each token and the one before it, which the call before may have read."""
        newest = reading.carried((id(self), "newest"), len(self.layers), hot[:, :, 0])
        last = newest[where].to(hot.device)
        met = torch.cat([last[:, :, None], hot], dim=2)
        cell = (reading.before[..., None] * self.experts + chosen).flatten(2)
        kept = met.flatten(2).gather(2, cell).unflatten(2, (-1, chosen.shape[-1])).sum(dim=-1)
        now = hot.gather(2, reading.last[None, :, None, None].expand(len(hot), -1, 1, self.experts))[:, :, 0]
        newest[where] = torch.where(reading.idle[:, None], last, now).to(newest.device)
        return {"kept": torch.where(reading.follows, kept, 0), "pairs": reading.follows.expand_as(kept)}

    def _accumulated(self, total: torch.Tensor | None, where: At, more: torch.Tensor) -> torch.Tensor:
        """Counts [layer, expert, expert] of all layers, with these added."""
        if total is None:
            total = more.new_zeros(len(self.layers), self.experts, self.experts, dtype=torch.float64)
        total[where] += more.to(total.device)
        return total

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums and counts by label, fold, layer and expert, and pairs of experts by layer."""
        count, grouped = len(labels), ("label", "fold", "layer")

        def stacked(name: str, *shape: int) -> np.ndarray:
            return (self._certain if name in _CERTAIN else self._sums).array(name, count, *shape)

        variables: dict[str, Variable] = {
            f"{name}_sum": (grouped, stacked(name), units, meaning)
            for name, (units, meaning) in _PER_TOKEN.items()
            if self.shared or not name.startswith("shared")
        }
        by_expert, load = (*grouped, "expert"), counted(stacked("load", self.experts))
        weight = stacked("weight", self.experts)
        by_window = (*grouped, "window")
        distinct, windows = self._windows.arrays(count)
        together, following = (self._pairs(counts) for counts in (self._coactivation, self._handover))
        variables |= {
            "tokens": (grouped, counted(stacked("tokens")), "token", "tokens read"),
            "measured": (grouped, counted(stacked("measured")), "token", "tokens whose certainty was measured"),
            "pairs": (grouped, counted(stacked("pairs")), "pair", "tokens with a token before them"),
            "load": (by_expert, load, "slot", "times the expert was among the top k"),
            "weight_sum": (by_expert, weight, "1", "renormalised routing weight, summed over tokens"),
            "distinct_sum": (by_window, distinct, "expert", "distinct experts, summed over windows"),
            "windows": (by_window, windows, "window", "complete windows"),
            "coactivation": (("layer", "expert", "expert_2"), together, "token", "tokens that chose both experts"),
            "transition": (
                ("layer", "expert", "expert_next"),
                following,
                "token",
                "tokens by their top choice in this and in the next layer watched",
            ),
        }
        dataset = self._dataset(labels, variables, window=("window", np.array(WINDOWS), {"units": "token"}))
        return dataset.assign_attrs(top_k=self.top_k, experts=self.experts)

    def _pairs(self, counts: torch.Tensor | None) -> np.ndarray:
        none = np.zeros((len(self.layers), self.experts, self.experts))
        return counted(none if counts is None else counts.cpu().numpy())


def _tensors(notes: Captured, *names: str) -> tuple[torch.Tensor, ...]:
    found = [notes[name] for name in names]
    assert all(isinstance(note, torch.Tensor) for note in found)
    return tuple(note for note in found if isinstance(note, torch.Tensor))


def _shared(routed: torch.Tensor, shared: torch.Tensor, logit: torch.Tensor) -> dict[str, torch.Tensor]:
    """Openness of the shared expert's gate, and its part in the output."""
    gate = torch.sigmoid(logit[..., 0].float())
    ours = gate * torch.linalg.vector_norm(shared.float(), dim=-1)
    both = ours + torch.linalg.vector_norm(routed.float(), dim=-1)
    return {"shared_gate": gate, "shared_share": ours / both.clamp_min(torch.finfo(torch.float32).tiny)}
