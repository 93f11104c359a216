"""The DeltaNet probe: what each head of each Gated DeltaNet layer writes, keeps, forgets and lets out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.probe.probe import Probe, Variable
from qwenlab.probe.reading import Reading
from qwenlab.probe.rule import RuleCall, normalised
from qwenlab.probe.tally import Histogram, Sums, by_layer, counted
from qwenlab.probe.taps import Notes, Part

GATE_BINS = 128
HALF_LIFE_FIRST, HALF_LIFE_BINS, BINS_AN_OCTAVE = -6, 160, 5
"""Half-lives are counted from 2**-6 tokens in bins of a fifth of an octave; the end bins take what lies beyond."""

_BINS = {"beta": GATE_BINS, "half_life": HALF_LIFE_BINS, "gate": GATE_BINS}
_WORDS = {"beta": "write strength", "half_life": "half-life", "gate": "openness of the output gate"}

_PER_HEAD = {
    "beta": ("1", "write strength beta, summed over tokens"),
    "alpha": ("1", "decay alpha, summed over tokens"),
    "log_alpha": ("nat", "ln of the decay, summed over tokens"),
    "gate": ("1", "openness of the output gate, sigmoid(z) averaged over channels, summed over tokens"),
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

    The prediction error is asked of the layer's own kernel, which costs one more call over the heads concerned; so by
    default only one key head in four (at least one), with all its value heads, is asked.

    layers            only these layers
    prediction_heads  key heads a layer whose prediction error and state norm are measured: a number, 0, or "all"
    """

    name = "deltanet"
    reads = "a DeltaNet mixer"

    def __init__(
        self, *, layers: Iterable[int] | None = None, prediction_heads: int | Literal["all"] | None = None
    ) -> None:
        super().__init__(layers=layers)
        if not (prediction_heads is None or prediction_heads == "all" or _is_count(prediction_heads)):
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
        names = (*_PER_HEAD, "error_tokens", "tokens", "sequences")
        self._sums = {name: {layer: Sums() for layer in self.layers} for name in names}
        self._histograms = {n: {layer: Histogram(bins) for layer in self.layers} for n, bins in _BINS.items()}
        self._moments: dict[int, dict[int, torch.Tensor]] = {layer: {} for layer in self.layers}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the delta rule, and the output gate."""
        return (("mixer", "rule"), ("mixer", "gate"))

    def heads_asked(self, layer: int) -> torch.Tensor:
        """int [sampled head]: the value heads whose prediction is asked for, evenly spaced by key head."""
        mixer = self.decoder.part(layer, "mixer")
        total, group = mixer.num_k_heads, mixer.num_v_heads // mixer.num_k_heads
        match self.prediction_heads:
            case None:
                count = max(1, total // 4)
            case int(given):
                count = min(given, total)
            case _:
                count = total
        keys = [index * total // count for index in range(count)]
        return torch.tensor([key * group + head for key in keys for head in range(group)], dtype=torch.long)

    def sample(self) -> dict[str, Any]:
        """Layers and heads, where not all of them are measured."""
        heads = self.heads_asked(self.layers[0]).tolist()
        everything = len(heads) == self.decoder.part(self.layers[0], "mixer").num_v_heads
        return super().sample() | ({} if everything else {"prediction_heads": heads})

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """Add up gates, keys and, for the heads asked, the prediction."""
        call, gate = notes["rule"], notes["gate"]
        assert isinstance(call, RuleCall)
        assert isinstance(gate, torch.Tensor)
        beta, g = call.beta.float(), call.g.float()
        openness = torch.sigmoid(gate).mean(dim=-1, dtype=torch.float32)
        for name, values in {"beta": beta, "alpha": g.exp(), "log_alpha": g, "gate": openness}.items():
            self._sums[name][layer].add(reading, values)
        self._sums["tokens"][layer].add(reading, torch.ones_like(reading.position))
        places = {"beta": beta * GATE_BINS, "half_life": half_life_bin(g), "gate": openness * GATE_BINS}
        for name, place in places.items():
            self._histograms[name][layer].add(reading, place)
        self._add_moment(layer, call.key, reading)
        if call.predicted is not None:
            self._add_prediction(layer, call, call.predicted, beta, reading)
        self._end_sequences(layer, call, beta.shape[-1], reading)

    def _add_moment(self, layer: int, key: torch.Tensor, reading: Reading) -> None:
        unit = normalised(key)
        for label in reading.present:
            ours = torch.where((reading.row == 1 + label)[..., None, None], unit, 0).flatten(0, 1).transpose(0, 1)
            moment = (ours.transpose(1, 2) @ ours).double()
            kept = self._moments[layer].get(label)
            self._moments[layer][label] = moment if kept is None else kept + moment

    def _add_prediction(
        self, layer: int, call: RuleCall, predicted: torch.Tensor, beta: torch.Tensor, reading: Reading
    ) -> None:
        value = call.value[:, :, call.heads].float().contiguous()
        error = torch.linalg.vector_norm(value - predicted, dim=-1)
        size = torch.linalg.vector_norm(value, dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        measured = {
            "update_norm": beta[:, :, call.heads] * error,
            "error_ratio": error / size,
            "error_tokens": torch.ones_like(error),
        }
        for name, values in measured.items():
            self._sums[name][layer].add(reading, _spread(values, call.heads, beta.shape[-1]))

    def _end_sequences(self, layer: int, call: RuleCall, width: int, reading: Reading) -> None:
        """Each sequence ends with its newest token: what was counted for it at the call before is taken back."""
        norm, group = self._newest_norm(call, width, reading), reading.last_group
        one, before = torch.ones_like(group), reading.carry.get((id(self), layer))
        if before is not None:
            norm = torch.where(reading.idle[:, None], before[0], norm)
            group = torch.where(reading.idle, before[1], group)
            self._sums["state_norm"][layer].move(reading.groups, before[1], -before[0])
            self._sums["sequences"][layer].move(reading.groups, before[1], -one)
        self._sums["state_norm"][layer].move(reading.groups, group, norm)
        self._sums["sequences"][layer].move(reading.groups, group, one)
        reading.carry[id(self), layer] = (norm, group)

    def _newest_norm(self, call: RuleCall, width: int, reading: Reading) -> torch.Tensor:
        """[batch, head]: norm of the state after each row's newest token."""
        norm = call.state_norm
        if norm is None:
            return call.g.new_zeros(reading.batch, width)
        if norm.shape[1] > 1:
            norm = norm.gather(1, reading.last[:, None, None].expand(-1, 1, norm.shape[2]))
        return _spread(norm[:, 0], call.heads, width)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums, histograms and key moments by label, layer and head."""
        grouped, count = ("label", "fold", "layer"), len(labels)
        mixer = self.decoder.part(self.layers[0], "mixer")
        heads = mixer.num_v_heads

        def stacked(name: str, *shape: int) -> np.ndarray:
            return by_layer(self._sums[name].values(), count, *shape)

        variables: dict[str, Variable] = {
            f"{name}_sum": ((*grouped, "head"), stacked(name, heads), units, meaning)
            for name, (units, meaning) in _PER_HEAD.items()
        }
        asked = counted(stacked("error_tokens", heads))
        variables["error_tokens"] = (
            (*grouped, "head"),
            asked,
            "token",
            "tokens over which the prediction error was summed",
        )
        variables["tokens"] = (grouped, counted(stacked("tokens")), "token", "tokens read")
        variables["sequences"] = (grouped, counted(stacked("sequences")), "sequence", "sequences read")
        for name, tallies in self._histograms.items():
            counts = np.stack([tally.array(count, heads) for tally in tallies.values()], axis=1)
            dims = ("label", "layer", "head", f"{name}_bin")
            variables[f"{name}_hist"] = (dims, counts, "token", f"tokens by {_WORDS[name]}")
        moments = np.zeros((count, len(self.layers), mixer.num_k_heads, mixer.head_k_dim, mixer.head_k_dim))
        for index, by_label in enumerate(self._moments.values()):
            for label, moment in by_label.items():
                moments[label, index] = moment.cpu().numpy()
        by_channel = ("label", "layer", "key_head", "channel", "channel_2")
        variables["key_moment"] = (by_channel, moments, "1", "sum of k k^T over tokens")
        return self._dataset(labels, variables, **_bins())


def half_life_bin(g: torch.Tensor) -> torch.Tensor:
    """Place of each token's half-life ln(1/2) / g, g = ln alpha <= 0, among the bins; infinite where nothing decays."""
    octave = math.log2(math.log(2)) - torch.log2(-g)
    return ((octave - HALF_LIFE_FIRST) * BINS_AN_OCTAVE).floor()


def gate_bins() -> tuple[str, np.ndarray, dict[str, str]]:
    """The coordinate of the bins of gate openness."""
    return ("gate_bin", np.arange(GATE_BINS) / GATE_BINS, {"units": "1", "long_name": "lower edge"})


def _bins() -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    half_life = 2.0 ** (HALF_LIFE_FIRST + np.arange(HALF_LIFE_BINS) / BINS_AN_OCTAVE)
    return {
        "beta_bin": ("beta_bin", *gate_bins()[1:]),
        "gate_bin": gate_bins(),
        "half_life_bin": ("half_life_bin", half_life, {"units": "token", "long_name": "lower edge"}),
    }


def _spread(values: torch.Tensor, heads: torch.Tensor, width: int) -> torch.Tensor:
    """[..., sampled head] to [..., head], zero for the heads left out."""
    if values.shape[-1] == width:
        return values
    return values.new_zeros(*values.shape[:-1], width).index_copy_(-1, heads, values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
