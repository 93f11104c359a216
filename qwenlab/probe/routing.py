"""The routing probe: which experts each layer chooses, how surely, with whom, and how choices change from token to token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import NothingToProbe
from qwenlab.probe.probe import Probe, Variable
from qwenlab.probe.reading import Reading
from qwenlab.probe.taps import Notes, Part
from qwenlab.probe.tally import Sums

WINDOWS = (2, 4, 8, 16, 32, 64, 128)
"""Lengths, in tokens, of the aligned windows in which distinct experts are counted."""

_PER_TOKEN = ("entropy", "topk_entropy", "margin", "shared_gate", "shared_share")


class Routing(Probe):
    """Load, certainty, company and turnover of the routed experts, from the router's own logits and choices.

    With p the softmax of the router's logits over all experts, and w the renormalised weights of the top k:

    load, weight         times each expert was among the top k; sum of its w
    entropy              of p, and of w, in nats;  margin: p of the k-th choice minus p of the (k+1)-th
    shared gate, share   sigmoid(shared_expert_gate); ||gated shared output|| / (that + ||routed output||)
    co-activation        tokens that chose both of two experts;  handover: top choice here and in the next routed layer
    kept                 experts of a token that its predecessor also chose
    distinct             experts met in aligned windows of 2 to 128 tokens (complete windows only)

    layers  only these layers
    """

    name = "routing"

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        layers = decoder.layers_with("router")
        if not layers:
            raise NothingToProbe(
                f"Routing() found no router: the model is {decoder.family.name}, whose {len(decoder.layers)} layers are dense.\n"
                "Leave Routing() out, or open a mixture of experts such as 'toy-moe' or 'Qwen/Qwen3.6-35B-A3B'."
            )
        return layers

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        router = decoder.part(self.layers[0], "router")
        self.top_k, self.experts = int(router.top_k), int(router.num_experts)
        self.shared = decoder.part(self.layers[0], "shared_expert_gate") is not None
        names = ("tokens", "load", "weight", "kept", "pairs", "distinct", "windows", *_PER_TOKEN)
        self._sums = {layer: {name: Sums() for name in names} for layer in self.layers}
        self._coactivation: dict[int, torch.Tensor] = {}
        self._handover: dict[int, torch.Tensor] = {}
        self._previous: tuple[int, torch.Tensor] | None = None

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        shared = (("mlp", "routed"), ("mlp", "shared"), ("mlp", "shared_gate")) if self.shared else ()
        return (("mlp", "router"), ("mlp", "weights"), ("mlp", "chosen"), *shared)

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        logits, weights, chosen = (notes[name] for name in ("router", "weights", "chosen"))
        assert isinstance(logits, torch.Tensor) and isinstance(weights, torch.Tensor) and isinstance(chosen, torch.Tensor)
        sums = self._sums[layer]
        hot = torch.zeros(logits.shape, device=logits.device).scatter_(-1, chosen, 1.0)
        hot = torch.where(reading.real[..., None], hot, 0)
        sums["load"].add(reading, hot)
        sums["weight"].add(reading, torch.zeros_like(hot).scatter_(-1, chosen, weights.float()))
        sums["tokens"].add(reading, torch.ones_like(reading.position))
        self._look_at_certainty(layer, logits, weights, reading)
        if self.shared:
            self._look_at_shared(layer, notes, reading)
        flat = hot.flatten(0, 1)
        _accumulate(self._coactivation, layer, flat.T @ flat)
        self._look_at_handover(layer, chosen, weights, reading)
        self._look_at_turnover(layer, hot, reading)
        self._look_at_windows(layer, hot > 0, reading)

    def _look_at_certainty(self, layer: int, logits: torch.Tensor, weights: torch.Tensor, reading: Reading) -> None:
        probability = logits.float().softmax(dim=-1)
        top = probability.topk(min(self.top_k + 1, self.experts), dim=-1).values
        sums = self._sums[layer]
        sums["entropy"].add(reading, torch.special.entr(probability).sum(dim=-1))
        sums["topk_entropy"].add(reading, torch.special.entr(weights.float()).sum(dim=-1))
        sums["margin"].add(reading, top[..., self.top_k - 1] - (top[..., self.top_k] if self.top_k < self.experts else 0))

    def _look_at_shared(self, layer: int, notes: Notes, reading: Reading) -> None:
        routed, shared, logit = (notes[name] for name in ("routed", "shared", "shared_gate"))
        assert isinstance(routed, torch.Tensor) and isinstance(shared, torch.Tensor) and isinstance(logit, torch.Tensor)
        gate = torch.sigmoid(logit[..., 0].float())
        ours = gate * torch.linalg.vector_norm(shared.float(), dim=-1)
        theirs = torch.linalg.vector_norm(routed.float(), dim=-1)
        self._sums[layer]["shared_gate"].add(reading, gate)
        self._sums[layer]["shared_share"].add(reading, ours / (ours + theirs).clamp_min(torch.finfo(torch.float32).tiny))

    def _look_at_handover(self, layer: int, chosen: torch.Tensor, weights: torch.Tensor, reading: Reading) -> None:
        top = chosen.gather(-1, weights.argmax(dim=-1, keepdim=True))[..., 0]
        index = self.layers.index(layer)
        if index and self._previous is not None and self._previous[0] == self.layers[index - 1]:
            before = self._previous[1].to(top.device)
            pair = (before * self.experts + top).flatten()
            counts = torch.zeros(self.experts**2, device=top.device)
            counts.scatter_add_(0, pair, reading.real.flatten().float())
            _accumulate(self._handover, self.layers[index - 1], counts.reshape(self.experts, self.experts))
        self._previous = (layer, top)

    def _look_at_turnover(self, layer: int, hot: torch.Tensor, reading: Reading) -> None:
        """Experts shared by each token and the one before it, the last of the call before included."""
        before = reading.carry.get((id(self), layer, "last"))
        first = hot.new_zeros(hot[:, :1].shape) if before is None else before[:, None].to(hot.device)
        has_first = hot.new_full(reading.real[:, :1].shape, before is not None, dtype=torch.bool)
        earlier = torch.cat([has_first, reading.real[:, :-1]], dim=1)
        shifted = torch.cat([first, hot[:, :-1]], dim=1)
        if before is not None and reading.keys is not None:
            # Columns that are padding within this call sit between a row's newest token and the one carried over.
            starts = reading.real & (reading.real.cumsum(1) == 1)
            shifted, earlier = torch.where(starts[..., None], first, shifted), earlier | starts
        kept = (hot * shifted).sum(dim=-1)
        self._sums[layer]["kept"].add(reading, torch.where(earlier, kept, 0))
        self._sums[layer]["pairs"].add(reading, earlier.float())
        newest = hot.gather(1, reading.last[:, None, None].expand(-1, 1, hot.shape[2]))[:, 0]
        if before is not None:
            newest = torch.where(reading.real.any(dim=1, keepdim=True), newest, first[:, 0])
        reading.carry[id(self), layer, "last"] = newest

    def _look_at_windows(self, layer: int, met: torch.Tensor, reading: Reading) -> None:
        """Distinct experts in aligned windows: those of 2n tokens are the union of two of n."""
        longest = WINDOWS[-1]
        position = torch.where(reading.real, reading.position, -1)
        origin = torch.where(reading.real, reading.position, 2**62).amin(dim=1, keepdim=True) // longest * longest
        blocks = (reading.width + longest - 1) // longest + 1
        # Padding goes to one spare slot at the end.
        slot = torch.where(reading.real, position - origin, blocks * longest).clamp_max(blocks * longest)
        width = met.shape[-1]
        grid = met.new_zeros(reading.batch, blocks * longest + 1, width)
        grid.scatter_(1, slot[..., None].expand(-1, -1, width), met)
        held = reading.carry.get((id(self), layer, "window"))
        if held is not None:
            self._put_back(grid, held, origin, longest)
        group = reading.group.new_zeros(reading.batch, blocks * longest + 1).scatter_(1, slot, reading.group)
        end = position.amax(dim=1, keepdim=True) + 1
        self._hold(layer, grid, origin, end, longest, reading)
        first = reading.carry.setdefault((id(self), layer, "first"), torch.where(reading.real, position, 2**62).amin(1))
        union, ends = grid[:, :-1], group[:, :-1]
        distinct, complete = [], []
        for length in WINDOWS:
            union = union.unflatten(1, (-1, 2)).any(dim=2)
            ends = ends.unflatten(1, (-1, 2))[:, :, 1]
            starts = origin + length * torch.arange(ends.shape[1], device=ends.device)
            distinct.append(union.sum(dim=-1))
            complete.append(torch.where(starts >= first[:, None], ends, 0))
        self._count_windows(layer, distinct, complete, reading)

    def _count_windows(
        self, layer: int, distinct: list[torch.Tensor], complete: list[torch.Tensor], reading: Reading
    ) -> None:
        """A window counts in the group of its last token, and only once that token has been read."""
        columns = torch.eye(len(WINDOWS), device=reading.group.device)
        for index, (number, group) in enumerate(zip(distinct, complete, strict=True)):
            ended = (group > 0).flatten()[:, None] * columns[index]
            self._sums[layer]["windows"].move(reading.groups, group.flatten(), ended)
            self._sums[layer]["distinct"].move(reading.groups, group.flatten(), ended * number.flatten()[:, None])

    def _hold(
        self, layer: int, grid: torch.Tensor, origin: torch.Tensor, end: torch.Tensor, longest: int, reading: Reading
    ) -> None:
        """Keep the longest window that is still open, for the call that goes on with it."""
        start = (end // longest * longest - origin).clamp(0, grid.shape[1] - 1 - longest)
        places = (start + torch.arange(longest, device=grid.device))[..., None].expand(-1, -1, grid.shape[2])
        open_now = grid.gather(1, places)
        before = reading.carry.get((id(self), layer, "window"))
        began = end // longest * longest
        if before is not None:
            idle = ~reading.real.any(dim=1, keepdim=True)
            open_now = torch.where(idle[..., None], before[0], open_now)
            began = torch.where(idle, before[1], began)
        reading.carry[id(self), layer, "window"] = (open_now, began)

    @staticmethod
    def _put_back(grid: torch.Tensor, held: tuple[torch.Tensor, torch.Tensor], origin: torch.Tensor, longest: int) -> None:
        same = (held[1] == origin)[..., None]
        grid[:, :longest] |= held[0] & same

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count, grouped = len(labels), ("label", "fold", "layer")

        def stacked(name: str, *shape: int) -> np.ndarray:
            arrays = [self._sums[layer][name].array(count) for layer in self.layers]
            return np.stack([a if a.ndim == 2 + len(shape) else np.zeros((*a.shape[:2], *shape)) for a in arrays], axis=2)

        def counted(name: str, *shape: int) -> np.ndarray:
            return stacked(name, *shape).round().astype(np.int64)

        experts, windows = self.experts, len(WINDOWS)
        variables: dict[str, Variable] = {
            "tokens": (grouped, counted("tokens"), "token", "tokens read"),
            "load": ((*grouped, "expert"), counted("load", experts), "slot", "times the expert was among the top k"),
            "weight_sum": ((*grouped, "expert"), stacked("weight", experts), "1", "renormalised routing weight, summed over tokens"),
            "entropy_sum": (grouped, stacked("entropy"), "nat", "entropy of the router's softmax over all experts, summed over tokens"),
            "topk_entropy_sum": (grouped, stacked("topk_entropy"), "nat", "entropy of the renormalised top-k weights, summed over tokens"),
            "margin_sum": (grouped, stacked("margin"), "1", "probability of the k-th choice minus that of the next, summed over tokens"),
            "kept_sum": (grouped, stacked("kept"), "slot", "experts kept from the token before, summed over pairs"),
            "pairs": (grouped, counted("pairs"), "pair", "tokens with a token before them"),
            "distinct_sum": ((*grouped, "window"), stacked("distinct", windows), "expert", "distinct experts, summed over windows"),
            "windows": ((*grouped, "window"), counted("windows", windows), "window", "complete windows"),
            "coactivation": (
                ("layer", "expert", "expert_2"),
                self._pairs(self._coactivation),
                "token",
                "tokens that chose both experts",
            ),
            "handover": (
                ("layer", "expert", "expert_next"),
                self._pairs(self._handover),
                "token",
                "tokens by their top choice in this and in the next routed layer",
            ),
        }
        if self.shared:
            variables["shared_gate_sum"] = (grouped, stacked("shared_gate"), "1", "sigmoid of the shared expert's gate, summed over tokens")
            variables["shared_share_sum"] = (
                grouped,
                stacked("shared_share"),
                "1",
                "norm of the gated shared output over that plus the routed output's, summed over tokens",
            )
        dataset = self._dataset(labels, variables, window=("window", np.array(WINDOWS), {"units": "token"}))
        return dataset.assign_attrs(top_k=self.top_k, experts=self.experts)

    def _pairs(self, counts: dict[int, torch.Tensor]) -> np.ndarray:
        out = np.zeros((len(self.layers), self.experts, self.experts), dtype=np.int64)
        for index, layer in enumerate(self.layers):
            if layer in counts:
                out[index] = counts[layer].cpu().numpy().round()
        return out


def _accumulate(totals: dict[int, torch.Tensor], layer: int, more: torch.Tensor) -> None:
    totals[layer] = totals[layer] + more if layer in totals else more.double()
