"""The routing probe: which experts each layer chooses, how surely, with whom, and what changes between tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.notes import Notes, Part
from qwenlab.probe.probe import Probe, Variable
from qwenlab.probe.reading import Reading
from qwenlab.probe.tally import Sums, by_layer, counted
from qwenlab.probe.windows import WINDOWS, Windows

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
    handover             top choice here and in the next of the layers watched
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
        self.top_k, self.experts = int(router.top_k), int(router.num_experts)
        self.shared = decoder.part(self.layers[0], "shared_expert_gate") is not None
        self._sums = {layer: Sums() for layer in self.layers}
        self._certain = {layer: Sums() for layer in self.layers}
        self._windows = {layer: Windows() for layer in self.layers}
        self._coactivation: dict[int, torch.Tensor] = {}
        self._handover: dict[int, torch.Tensor] = {}
        self._previous: tuple[int, torch.Tensor] | None = None

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """What the router says, and what routed and shared experts yield."""
        shared = ("routed", "shared", "shared_gate") if self.shared else ()
        return tuple(("mlp", name) for name in ("router", "weights", "chosen", *shared))

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """Add up the choices of every token."""
        logits, weights, chosen = _tensors(notes, "router", "weights", "chosen")
        weights = weights.float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        hot = reading.masked(torch.zeros(logits.shape, device=logits.device).scatter_(-1, chosen, 1.0))
        by_expert = torch.zeros_like(hot).scatter_(-1, chosen, weights)
        tokens, turnover = torch.ones_like(reading.position), self._turnover(layer, chosen, hot, reading)
        self._sums[layer].add(reading, tokens=tokens, load=hot, weight=by_expert, **turnover)
        sample = reading.sample(self.every)
        certain = _certainty(*map(sample.of, (logits, weights, chosen, hot)))
        if self.shared:
            certain |= _shared(*map(sample.of, _tensors(notes, "routed", "shared", "shared_gate")))
        measured = torch.ones_like(sample.reading.position)
        self._certain[layer].add(sample.reading, measured=measured, **certain)
        flat = hot.flatten(0, 1)
        _accumulate(self._coactivation, layer, flat.T @ flat)
        self._look_at_handover(layer, chosen, weights, reading)
        self._windows[layer].add(hot > 0, reading)

    def _look_at_handover(self, layer: int, chosen: torch.Tensor, weights: torch.Tensor, reading: Reading) -> None:
        top = chosen.gather(-1, weights.argmax(dim=-1, keepdim=True))[..., 0]
        before, self._previous = self._previous, (layer, top)
        index = self.layers.index(layer)
        if index and before is not None and before[0] == self.layers[index - 1]:
            pair = before[1].to(top.device) * self.experts + top
            counts = torch.zeros(self.experts**2, device=top.device)
            counts.scatter_add_(0, pair.flatten(), reading.real.flatten().float())
            _accumulate(self._handover, before[0], counts.unflatten(0, (self.experts, self.experts)))

    def _turnover(
        self, layer: int, chosen: torch.Tensor, hot: torch.Tensor, reading: Reading
    ) -> dict[str, torch.Tensor]:
        """Experts shared by each token and the one before it, which the call before may have read."""
        last = reading.carry.get((id(self), layer))
        last = torch.zeros_like(hot[:, 0]) if last is None else last
        met = torch.cat([last[:, None], hot], dim=1)
        cell = reading.before[..., None] * self.experts + chosen
        kept = met.flatten(1).gather(1, cell.flatten(1)).unflatten(1, (-1, self.top_k)).sum(dim=-1)
        newest = hot.gather(1, reading.last[:, None, None].expand(-1, 1, self.experts))[:, 0]
        reading.carry[id(self), layer] = torch.where(reading.idle[:, None], last, newest)
        return {"kept": torch.where(reading.follows, kept, 0), "pairs": reading.follows}

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums and counts by label, fold, layer and expert, and pairs of experts by layer."""
        count, grouped = len(labels), ("label", "fold", "layer")

        def stacked(name: str, *shape: int) -> np.ndarray:
            sums = self._certain if name in _CERTAIN else self._sums
            return by_layer(sums.values(), name, count, *shape)

        variables: dict[str, Variable] = {
            f"{name}_sum": (grouped, stacked(name), units, meaning)
            for name, (units, meaning) in _PER_TOKEN.items()
            if self.shared or not name.startswith("shared")
        }
        by_expert, load = (*grouped, "expert"), counted(stacked("load", self.experts))
        weight = stacked("weight", self.experts)
        by_window = (*grouped, "window")
        distinct, windows = (
            np.stack(a, axis=2) for a in zip(*(w.arrays(count) for w in self._windows.values()), strict=True)
        )
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
            "handover": (
                ("layer", "expert", "expert_next"),
                following,
                "token",
                "tokens by their top choice in this and in the next layer watched",
            ),
        }
        dataset = self._dataset(labels, variables, window=("window", np.array(WINDOWS), {"units": "token"}))
        return dataset.assign_attrs(top_k=self.top_k, experts=self.experts)

    def _pairs(self, counts: dict[int, torch.Tensor]) -> np.ndarray:
        none = np.zeros((self.experts, self.experts))
        return counted(np.stack([counts[layer].cpu().numpy() if layer in counts else none for layer in self.layers]))


def _tensors(notes: Notes, *names: str) -> tuple[torch.Tensor, ...]:
    found = [notes[name] for name in names]
    assert all(isinstance(note, torch.Tensor) for note in found)
    return tuple(note for note in found if isinstance(note, torch.Tensor))


def _certainty(
    logits: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, hot: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Entropies, and by how much the last expert chosen leads the best of those that were not."""
    probability = logits.float().softmax(dim=-1)
    # Where every expert is chosen there is none to lead, and the largest of the rest is 0.
    rest = probability.masked_fill(hot > 0, 0).amax(dim=-1)
    return {
        "entropy": torch.special.entr(probability).sum(dim=-1),
        "topk_entropy": torch.special.entr(weights).sum(dim=-1),
        "margin": probability.gather(-1, chosen).amin(dim=-1) - rest,
    }


def _shared(routed: torch.Tensor, shared: torch.Tensor, logit: torch.Tensor) -> dict[str, torch.Tensor]:
    """Openness of the shared expert's gate, and its part in the output."""
    gate = torch.sigmoid(logit[..., 0].float())
    ours = gate * torch.linalg.vector_norm(shared.float(), dim=-1)
    both = ours + torch.linalg.vector_norm(routed.float(), dim=-1)
    return {"shared_gate": gate, "shared_share": ours / both.clamp_min(torch.finfo(torch.float32).tiny)}


def _accumulate(totals: dict[int, torch.Tensor], layer: int, more: torch.Tensor) -> None:
    totals[layer] = totals[layer] + more if layer in totals else more.double()
