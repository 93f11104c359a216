"""The DeltaNet probe: what each head of each Gated DeltaNet layer writes, keeps, forgets and lets out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import normalised
from qwenlab.capture.tokens import PADDING, TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import At, Histogram, Sums, counted
from qwenlab.probes.base import Probe, Reduced, Variable
from qwenlab.probes.bins import GATE_BINS, HALF_LIFE_BINS, bins, half_life_bin
from qwenlab.probes.kernel_agreement import StateDeviation

_HISTOGRAMS = {
    "beta": (GATE_BINS, "write strength"),
    "half_life": (HALF_LIFE_BINS, "half-life"),
    "gate": (GATE_BINS, "mean value of the output gate"),
}

_PER_HEAD = {
    "beta": ("1", "write strength beta, summed over tokens"),
    "alpha": ("1", "decay alpha, summed over tokens"),
    "log_alpha": ("nat", "ln of the decay, summed over tokens"),
    "gate": ("1", "mean value of the output gate, sigmoid(z) averaged over channels, summed over tokens"),
    "update_norm": ("1", "norm of the written update ||beta (v - S^T k)||, summed over tokens"),
    "error_ratio": ("1", "prediction error ||v - S^T k|| / ||v||, summed over tokens"),
    "state_norm": ("1", "norm of the state at the end, summed over sequences"),
}


class DeltaNet(Probe):
    """Write strength, decay, prediction error, keys and output gate of every DeltaNet head.

    With S the state, alpha = exp(g) the decay and beta the write strength of a token, the layer does
    S <- alpha S; S <- S + k (beta (v - S^T k))^T (Yang et al. 2024, arXiv:2412.06464). Kept, per layer and head:

    beta, alpha, ln alpha   sums, and histograms of beta and of the half-life ln(1/2) / ln(alpha) in tokens
    prediction error        ||v - S^T k|| / ||v||, and the update's norm ||beta (v - S^T k)||, before S is written to
    gate openness           mean over channels of sigmoid(z); the gate itself is silu(z) = z sigmoid(z)
    key moment              sum of k k^T over tokens, k normalised: how much the keys of different tokens collide
    state norm              Frobenius norm of S when the last token of a sequence had been read

    Prediction error and state norm are worked out from what the kernel was given (`prediction.py`), which costs more
    than all the rest: they are measured on request. The state that comes out is held to the one that the kernel
    returned: attr `state_gap` is their largest distance, relative to the kernel's, and beyond 5 % the block ends in
    KernelDisagrees.

    layers            only these layers
    every             measure one token of every so many (`reading.drawn` says which); 1 measures all
    prediction_heads  key heads a layer whose prediction error and state norm are measured, with all their value heads:
                      a number, evenly spaced, or "all"
    """

    name = "deltanet"
    reads = "a DeltaNet mixer"

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        every: int = 8,
        prediction_heads: int | Literal["all"] = 0,
    ) -> None:
        super().__init__(layers=layers, every=every)
        if not (prediction_heads == "all" or _is_count(prediction_heads)):
            raise BadArgument(
                f"DeltaNet(prediction_heads={prediction_heads!r}): "
                "give a number of key heads a layer (0 or more), or 'all'."
            )
        self.prediction_heads = prediction_heads

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The DeltaNet layers."""
        return decoder.layers_of(DELTANET)

    def start(self, decoder: Decoder) -> None:
        """Empty sums and histograms for these layers."""
        super().start(decoder)
        count = len(self.layers)
        self._sums, self._ends, self._histogram = Sums(count), Sums(count), Histogram(count, HALF_LIFE_BINS)
        self._moments: dict[int, torch.Tensor] = {}  # by label, float64 [layer, key head, channel, channel]
        self._gap = StateDeviation()

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the delta rule, and the output gate."""
        return (("mixer", "rule"), ("mixer", "gate"))

    def heads_asked(self, layer: int) -> torch.Tensor:
        """int [sampled head]: the value heads whose prediction is asked for, evenly spaced by key head."""
        mixer = self.decoder.part(layer, "mixer")
        total, group = mixer.num_k_heads, mixer.num_v_heads // mixer.num_k_heads
        count = total if self.prediction_heads == "all" else min(self.prediction_heads, total)
        keys = [index * total // count for index in range(count)]
        return torch.tensor([key * group + head for key in keys for head in range(group)], dtype=torch.long)

    def sample(self) -> dict[str, Any]:
        """Layers and heads, where not all of them are measured."""
        heads = self.heads_asked(self.layers[0]).tolist()
        everything = len(heads) == self.decoder.part(self.layers[0], "mixer").num_v_heads
        return super().sample() | ({} if everything else {"prediction_heads": heads})

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced:
        """Gates and keys of the sampled tokens and, for the heads asked, the prediction."""
        call, gate = notes["rule"], notes["gate"]
        assert isinstance(call, DeltaRuleCall)
        assert isinstance(gate, torch.Tensor)
        sample = reading.sample(self.every)
        return {
            "beta": sample.of(call.beta).float(),
            "log_alpha": sample.of(call.g).float(),
            "key": sample.of(call.key),
            "gate": torch.sigmoid(sample.of(gate)).mean(dim=-1, dtype=torch.float32),
            **(self._predict(layer, call, reading) if call.heads is not None else {}),
        }

    def _predict(self, layer: int, call: DeltaRuleCall, reading: TokenBatch) -> Reduced:
        """Of the heads asked, by sampled token: the update's norm and the error; and the state's norm at the end."""
        assert call.heads is not None
        predicted, state = call.predict(call.heads, reading)
        sample = reading.sample(self.every)
        value, beta = (sample.of(tensor.index_select(2, call.heads)).float() for tensor in (call.value, call.beta))
        error, size = (torch.linalg.vector_norm(each, dim=-1) for each in (value - sample.of(predicted), value))
        if call.final is not None and reading.whole:
            self._gap.note(layer, state, call.final)
        return {
            "update_norm": beta * error,
            "error_ratio": error / size.clamp_min(torch.finfo(torch.float32).tiny),
            "state_norm": torch.linalg.vector_norm(state, dim=(-2, -1)),
        }

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up gates, keys and the prediction."""
        few = reading.sample(self.every).reading
        beta, g, gate = kept["beta"], kept["log_alpha"], kept["gate"]
        beta_bin, gate_bin = (place.clamp_max(GATE_BINS - 1) for place in (beta * GATE_BINS, gate * GATE_BINS))
        self._histogram.add(where, few, torch.stack([beta_bin, half_life_bin(g), gate_bin], dim=3))
        summed = {"beta": beta, "alpha": g.exp(), "log_alpha": g, "gate": gate, "tokens": torch.ones_like(beta[..., 0])}
        summed |= {name: kept[name] for name in ("update_norm", "error_ratio") if name in kept}
        self._sums.add(where, few, **summed)
        self._add_moments(where, normalised(kept["key"]), few)
        self._end_sequences(where, kept.get("state_norm"), len(beta), reading)

    def _add_moments(self, where: At, unit: torch.Tensor, few: TokenBatch) -> None:
        for label in few.present:
            ours = few.labelled(label)
            keys = few.masked(unit, axis=1) if ours is None else torch.where(ours[..., None, None], unit, 0)
            keys = keys.flatten(1, 2).transpose(1, 2).contiguous()  # [layer, key head, token, channel]
            moments = (keys.transpose(2, 3) @ keys).double()
            if label not in self._moments:
                self._moments[label] = moments.new_zeros(len(self.layers), *moments.shape[1:])
            self._moments[label][where] += moments.to(self._moments[label].device)

    def _end_sequences(self, where: At, norm: torch.Tensor | None, layers: int, reading: TokenBatch) -> None:
        """Each sequence ends with its newest token: what was counted for it at the call before is taken back."""
        group = reading.last_group
        ended = torch.ones(layers, reading.batch, 1, device=group.device)
        now = ended if norm is None else torch.cat([ended, norm], dim=2)
        ends = reading.carried((id(self), "ends"), len(self.layers), now)
        groups = reading.carried((id(self), "group"), len(self.layers), group[None], PADDING)
        then, group_then = ends[where].to(now.device, copy=True), groups[where][0].to(group.device, copy=True)
        now = torch.where(reading.idle[:, None], then, now)
        group = torch.where(reading.idle, group_then, group)
        ends[where], groups[where] = now.to(ends.device), group.to(groups.device)
        both = torch.cat([group, group_then])  # the same in every layer
        self._ends.move(where, reading.groups, both, ends=torch.cat([now, -then], dim=1))

    def check(self) -> None:
        """Raise KernelDisagrees where our state and the kernel's are not the same."""
        self._gap.check(
            "DeltaNet",
            "watch with DeltaNet(prediction_heads=0), which needs no state, or use transformers' own kernel.",
        )

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums, histograms and key moments by label, layer and head."""
        grouped, count = ("label", "fold", "layer"), len(labels)
        mixer = self.decoder.part(self.layers[0], "mixer")
        heads, asked = mixer.num_v_heads, self.heads_asked(self.layers[0]).numpy()
        tokens = counted(self._sums.array("tokens", count))
        ends = self._ends.array("ends", count, 1 + len(asked))

        def of_asked(values: np.ndarray) -> np.ndarray:
            """[..., sampled head] to [..., head], zero for the heads left out."""
            out = np.zeros((*values.shape[:-1], heads), values.dtype)
            out[..., asked] = values
            return out

        sums = {name: self._sums.array(name, count, heads) for name in ("beta", "alpha", "log_alpha", "gate")}
        for name in ("update_norm", "error_ratio"):
            sums[name] = of_asked(self._sums.array(name, count, len(asked)))
        sums["state_norm"] = of_asked(ends[..., 1:])
        variables: dict[str, Variable] = {
            f"{name}_sum": ((*grouped, "head"), sums[name], units, meaning)
            for name, (units, meaning) in _PER_HEAD.items()
        }
        error_tokens = of_asked(np.repeat(tokens[..., None], len(asked), axis=-1))
        what = "tokens over which the prediction error was summed"
        variables["error_tokens"] = ((*grouped, "head"), error_tokens, "token", what)
        variables["tokens"] = (grouped, tokens, "token", "tokens measured")
        variables["sequences"] = (grouped, counted(ends[..., 0]), "sequence", "sequences read")
        variables |= self._binned(count, heads) | self._key_moments(count, mixer)
        return self._dataset(labels, variables, **bins()).assign_attrs(self._gap.attrs)

    def _binned(self, labels: int, heads: int) -> dict[str, Variable]:
        counts = self._histogram.array(labels, 3, heads)
        return {
            f"{name}_hist": (
                ("label", "layer", "head", f"{name}_bin"),
                counts[:, :, index, :, :count],
                "token",
                f"tokens by {meaning}",
            )
            for index, (name, (count, meaning)) in enumerate(_HISTOGRAMS.items())
        }

    def _key_moments(self, labels: int, mixer: Any) -> dict[str, Variable]:
        shape = (len(self.layers), mixer.num_k_heads, mixer.head_k_dim, mixer.head_k_dim)
        known = {label: moments.cpu().numpy() for label, moments in self._moments.items()}
        moments = np.stack([known.get(label, np.zeros(shape)) for label in range(labels)])
        dims = ("label", "layer", "key_head", "channel", "channel_2")
        return {"key_moment": (dims, moments, "1", "sum of k k^T over tokens")}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
