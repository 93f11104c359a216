"""The DeltaNet probe: gates, decay, keys and prediction error of each head of each Gated DeltaNet layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from qwenlab.arguments import integer
from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.layout import head_counts
from qwenlab.capture.prediction import normalised
from qwenlab.capture.tokens import PADDING, TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.probes.accumulators import Histogram, LayerSlice, Sums, Totals, counted
from qwenlab.probes.base import GROUPED, Probe, Reduced, may_wait, summed
from qwenlab.probes.bins import GATE_BINS, HALF_LIFE_BINS, half_life_bin, unit_bins
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
    S <- alpha S; S <- S + k (beta (v - S^T k))^T (Yang et al. 2024, arXiv:2412.06464). Measured per layer and head:

    beta, alpha, ln alpha   sums, and histograms of beta (0 to 1, or to 2 where the model allows negative eigenvalues)
                            and of the half-life ln(1/2) / ln(alpha) in tokens
    prediction error        ||v - S^T k|| / ||v||, and the update's norm ||beta (v - S^T k)||, before S is written to
    gate openness           mean over channels of sigmoid(z); the gate itself is silu(z) = z sigmoid(z)
    key moment              sum of k k^T over tokens, k normalised: how much the keys of different tokens collide
    state norm              Frobenius norm of S after the last token of a sequence

    Prediction error and state norm are recomputed from the kernel's arguments (capture/prediction.py). That costs more
    than everything else, so it is off by default. The recomputed state is checked against the one that the kernel
    returned: attr `state_gap` is their largest distance, relative to the kernel's state, and beyond 5 % the block
    raises KernelMismatch.

    layers            only these layers
    every             measure one token per block of this many (chosen by `sampled_steps.drawn`); 1 measures all
    prediction_heads  key heads per layer whose prediction error and state norm are measured, with all their value
                      heads: a number, evenly spaced, or "all"
    """

    name = "deltanet"
    kind = DELTANET
    changing = ("_sums", "_ends", "_histogram", "_moments", "_deviation")

    def __init__(
        self, *, layers: Iterable[int] | None = None, every: int = 8, prediction_heads: int | Literal["all"] = 0
    ) -> None:
        super().__init__(layers=layers, every=every)
        if prediction_heads != "all":
            integer("DeltaNet", "prediction_heads", prediction_heads, unit="key heads per layer ('all' for all)")
        self.prediction_heads = prediction_heads

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        count = len(self.layers)
        self._head_counts = head_counts(decoder, self.layers[0])
        self._predicted = self._predicted_heads()
        self._channels, _ = decoder.family.deltanet.state_shape(decoder.module.config)
        self._largest_beta = decoder.family.deltanet.largest_beta(decoder.module.config)
        self._sums, self._ends, self._histogram = Sums(count), Sums(count), Histogram(count, HALF_LIFE_BINS)
        self._moments = defaultdict[int, Totals](lambda: Totals(count))  # by label: [layer, key head, channel, channel]
        self._deviation = StateDeviation()

    def sites(self, layer: int) -> Iterable[str]:
        return ("mixer.rule", "mixer.gate", *(["mixer.state"] if self.prediction_heads else []))

    def sampled_sites(self, layer: int) -> Iterable[str]:
        return ("mixer.gate",) if self.prediction_heads else self.sites(layer)

    def state_heads(self, layer: int) -> Iterable[int]:
        return self._predicted.tolist()

    def _predicted_heads(self) -> torch.Tensor:
        """Return int [sampled head]: the value heads whose prediction is measured, evenly spaced by key head."""
        heads, total = self._head_counts
        group = heads // total
        count = total if self.prediction_heads == "all" else min(self.prediction_heads, total)
        keys = [index * total // count for index in range(count)]
        return torch.tensor([key * group + head for key in keys for head in range(group)], dtype=torch.long)

    def sample(self) -> dict[str, Any]:
        heads = self._predicted.tolist()
        everything = len(heads) == self._head_counts[0]
        return super().sample() | ({} if everything else {"prediction_heads": heads})

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced:
        """Return gates and keys of the sampled tokens and, for the predicted heads, the prediction error."""
        call, gate = captured["mixer.rule"], captured["mixer.gate"]
        assert isinstance(call, DeltaRuleCall)
        assert isinstance(gate, torch.Tensor)
        sample = tokens.sample(self.every)
        gate = sample.of(gate)
        return {
            "beta": sample.of(call.beta),
            "log_alpha": sample.of(call.g),
            "key": sample.of(call.key),
            "gate": gate if may_wait(gate) else _openness(gate),
            **(self._predict(layer, call, tokens) if self.prediction_heads else {}),
        }

    def _predict(self, layer: int, call: DeltaRuleCall, tokens: TokenBatch) -> Reduced:
        """Return the predicted heads' update norm and error by sampled token, and the norm of their final state."""
        heads = self._predicted.to(call.device)
        predicted, state = call.predict(heads, tokens)
        sample = tokens.sample(self.every)
        value, beta = (sample.of(tensor.index_select(2, heads)).float() for tensor in (call.value, call.beta))
        error, size = (torch.linalg.vector_norm(each, dim=-1) for each in (value - sample.of(predicted), value))
        final = call.states(heads)[1]
        if final is not None and tokens.whole:
            self._deviation.add(layer, state, final)
        return {
            "update_norm": beta * error,
            "error_ratio": error / size.clamp_min(torch.finfo(torch.float32).tiny),
            "state_norm": torch.linalg.vector_norm(state, dim=(-2, -1)),
        }

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        sampled = tokens.sample(self.every).tokens
        beta, g, gate = reduced["beta"].float(), reduced["log_alpha"].float(), reduced["gate"]
        gate = _openness(gate) if gate.ndim > beta.ndim else gate
        places = (beta * (GATE_BINS / self._largest_beta), gate * GATE_BINS)
        beta_bin, gate_bin = (place.clamp_max(GATE_BINS - 1) for place in places)
        self._histogram.add(where, sampled, torch.stack([beta_bin, half_life_bin(g), gate_bin], dim=3))
        values = {"beta": beta, "alpha": g.exp(), "log_alpha": g, "gate": gate, "tokens": torch.ones_like(beta[..., 0])}
        values |= {name: reduced[name] for name in ("update_norm", "error_ratio") if name in reduced}
        self._sums.add(where, sampled, **values)
        self._add_moments(where, normalised(reduced["key"]), sampled)
        self._end_sequences(where, reduced.get("state_norm"), len(beta), tokens)

    def _add_moments(self, where: LayerSlice, unit: torch.Tensor, sampled: TokenBatch) -> None:
        for label in sampled.present:
            ours = sampled.labelled(label)
            keys = sampled.masked(unit, axis=1) if ours is None else torch.where(ours[..., None, None], unit, 0)
            keys = keys.flatten(1, 2).transpose(1, 2).contiguous()  # [layer, key head, token, channel]
            self._moments[label].add(where, keys.transpose(2, 3) @ keys)

    def _end_sequences(self, where: LayerSlice, norm: torch.Tensor | None, layers: int, tokens: TokenBatch) -> None:
        """Count each sequence at its newest token, and subtract what was counted for it at the previous call."""
        group = tokens.last_group
        ended = torch.ones(layers, tokens.batch, 1, device=group.device)
        now = ended if norm is None else torch.cat([ended, norm], dim=2)
        ends = tokens.carried((id(self), "ends"), len(self.layers), now)
        groups = tokens.carried((id(self), "group"), len(self.layers), group[None], PADDING)
        old, old_group = ends[where].to(now.device, copy=True), groups[where][0].to(group.device, copy=True)
        now = torch.where(tokens.idle[:, None], old, now)
        group = torch.where(tokens.idle, old_group, group)
        ends[where], groups[where] = now.to(ends.device), group.to(groups.device)
        both = torch.cat([group, old_group])  # the same in every layer
        self._ends.add_rows(where, tokens.groups, both, ends=torch.cat([now, -old], dim=1))

    def check(self) -> None:
        self._deviation.check(
            "DeltaNet",
            "watch with DeltaNet(prediction_heads=0), which needs no state, or use transformers' own kernel.",
        )

    def dataset(self, labels: list[str]) -> xr.Dataset:
        count, predicted = len(labels), self._predicted.numpy()
        heads, key_heads = self._head_counts
        tokens = counted(self._sums.array("tokens", count))
        ends = self._ends.array("ends", count, 1 + len(predicted))

        def all_heads(values: np.ndarray) -> np.ndarray:
            """[..., predicted head] to [..., head], zero for the other heads."""
            out = np.zeros((*values.shape[:-1], heads), values.dtype)
            out[..., predicted] = values
            return out

        def sums(name: str) -> np.ndarray:
            if name == "state_norm":
                return all_heads(ends[..., 1:])
            if name in ("update_norm", "error_ratio"):
                return all_heads(self._sums.array(name, count, len(predicted)))
            return self._sums.array(name, count, heads)

        by_head = (*GROUPED, "head")
        error_tokens = all_heads(np.repeat(tokens[..., None], len(predicted), axis=-1))
        variables = summed(_PER_HEAD, by_head, sums) | {
            "error_tokens": (by_head, error_tokens, "token", "tokens over which the prediction error was summed"),
            "tokens": (GROUPED, tokens, "token", "tokens measured"),
            "sequences": (GROUPED, counted(ends[..., 0]), "sequence", "sequences read"),
        }
        counts = self._histogram.array(count, 3, heads)
        for index, (name, (bins, meaning)) in enumerate(_HISTOGRAMS.items()):
            dims = ("label", "layer", "head", f"{name}_bin")
            variables[f"{name}_hist"] = (dims, counts[:, :, index, :, :bins], "token", f"tokens by {meaning}")
        channels = self._channels
        moments = np.stack([self._moments[label].array(key_heads, channels, channels) for label in range(count)])
        by_channel = ("label", "layer", "key_head", "channel", "channel_2")
        variables["key_moment"] = (by_channel, moments, "1", "sum of k k^T over tokens")
        beta_bin = unit_bins("beta_bin", self._largest_beta)
        return self.build_dataset(labels, variables, beta_bin=beta_bin).assign_attrs(self._deviation.attrs)


def _openness(gate: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the sigmoid of the logits of an output gate [..., channel]."""
    return torch.sigmoid(gate).mean(dim=-1, dtype=torch.float32)
