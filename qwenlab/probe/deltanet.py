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
from qwenlab.probe.probe import Probe
from qwenlab.probe.reading import Reading
from qwenlab.probe.rule import RuleCall, normalised
from qwenlab.probe.taps import Notes, Part
from qwenlab.probe.tally import Histogram, Sums

GATE_BINS = 128
HALF_LIFE_FIRST, HALF_LIFE_BINS, BINS_AN_OCTAVE = -6, 160, 5
"""Half-lives are counted from 2**-6 tokens in bins of a fifth of an octave; the end bins take what lies beyond."""

_PER_HEAD = ("beta", "alpha", "log_alpha", "gate")
_OF_PREDICTION = ("update_norm", "error_ratio", "error_tokens")


class DeltaNet(Probe):
    """Write strength, decay, prediction error, keys and output gate of every DeltaNet head.

    With S the state, alpha = exp(g) the decay and beta the write strength of a token, the layer does
    S <- alpha S; S <- S + k (beta (v - S^T k))^T (Yang et al. 2024, arXiv:2412.06464). Kept, per layer and head:

    beta, alpha, ln alpha   sums, and histograms of beta and of the half-life ln(1/2) / ln(alpha) in tokens
    prediction error        ||v - S^T k|| / ||v|| and the update's norm ||beta (v - S^T k)||, S decayed, not yet written to
    gate openness           mean over channels of sigmoid(z); the gate itself is silu(z) = z sigmoid(z)
    key moment              sum of k k^T over tokens, k normalised: how much the keys of different tokens collide
    state norm              Frobenius norm of S when the last token of a sequence had been read

    The prediction error is asked of the layer's own kernel, which costs one more call over the heads concerned; so by
    default only one key head in four (at least one), with all its value heads, is asked.

    layers            only these layers
    prediction_heads  key heads a layer whose prediction error and state norm are measured: a number, 0, or "all"
    """

    name = "deltanet"

    def __init__(
        self, *, layers: Iterable[int] | None = None, prediction_heads: int | Literal["all"] | None = None
    ) -> None:
        super().__init__(layers=layers)
        if not (prediction_heads is None or prediction_heads == "all" or _is_count(prediction_heads)):
            raise BadArgument(
                f"DeltaNet(prediction_heads={prediction_heads!r}): give a number of key heads a layer (0 or more), or 'all'."
            )
        self.prediction_heads = prediction_heads

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        return decoder.layers_of(DELTANET)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self._sums = {layer: {name: Sums() for name in _PER_HEAD + _OF_PREDICTION} for layer in self.layers}
        self._tokens = {layer: Sums() for layer in self.layers}
        self._state_norm = {layer: Sums() for layer in self.layers}
        self._sequences = {layer: Sums() for layer in self.layers}
        bins = {"beta": GATE_BINS, "gate": GATE_BINS, "half_life": HALF_LIFE_BINS}
        self._histograms = {layer: {name: Histogram(size) for name, size in bins.items()} for layer in self.layers}
        self._moments: dict[int, dict[int, torch.Tensor]] = {layer: {} for layer in self.layers}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        return (("mixer", "rule"), ("mixer", "gate"))

    def heads_asked(self, layer: int) -> torch.Tensor:
        """int [sampled head]: the value heads whose prediction is asked for, evenly spaced by key head."""
        mixer = self.decoder.part(layer, "mixer")
        total = mixer.num_k_heads
        count = {None: max(1, total // 4), "all": total}.get(self.prediction_heads, self.prediction_heads)
        count = min(int(count or 0), total)
        keys = [index * total // count for index in range(count)]
        group = mixer.num_v_heads // total
        return torch.tensor([key * group + head for key in keys for head in range(group)], dtype=torch.long)

    def sample(self) -> dict[str, Any]:
        heads = self.heads_asked(self.layers[0]).tolist()
        everything = len(heads) == self.decoder.part(self.layers[0], "mixer").num_v_heads
        return super().sample() | ({} if everything else {"prediction_heads": heads})

    def look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        call, gate = notes["rule"], notes["gate"]
        assert isinstance(call, RuleCall) and isinstance(gate, torch.Tensor)
        beta, g = call.beta.float(), call.g.float()
        openness = torch.sigmoid(gate).mean(dim=-1, dtype=torch.float32)
        sums, histograms = self._sums[layer], self._histograms[layer]
        for name, values in zip(_PER_HEAD, (beta, g.exp(), g, openness), strict=True):
            sums[name].add(reading, values)
        self._tokens[layer].add(reading, torch.ones_like(reading.position))
        histograms["beta"].add(reading, beta * GATE_BINS)
        histograms["gate"].add(reading, openness * GATE_BINS)
        histograms["half_life"].add(reading, half_life_bin(g))
        self._add_moment(layer, call.key, reading)
        if call.predicted is not None and call.state_norm is not None:
            self._add_prediction(layer, call, beta, reading)

    def _add_moment(self, layer: int, key: torch.Tensor, reading: Reading) -> None:
        unit = normalised(key)
        for label in reading.present:
            ours = torch.where((reading.row == 1 + label)[..., None, None], unit, 0).flatten(0, 1).transpose(0, 1)
            moment = (ours.transpose(1, 2) @ ours).double()
            kept = self._moments[layer].get(label)
            self._moments[layer][label] = moment if kept is None else kept + moment

    def _add_prediction(self, layer: int, call: RuleCall, beta: torch.Tensor, reading: Reading) -> None:
        heads = call.heads
        value = call.value[:, :, heads].float()
        error = torch.linalg.vector_norm(value - call.predicted, dim=-1)
        size = torch.linalg.vector_norm(value, dim=-1)
        ratio = error / size.clamp_min(torch.finfo(torch.float32).tiny)
        measured = (beta[:, :, heads] * error, ratio, torch.ones_like(ratio))
        for name, values in zip(_OF_PREDICTION, measured, strict=True):
            self._sums[layer][name].add(reading, _spread(values, heads, beta.shape[-1]))
        self._keep_state_norm(layer, call, beta.shape[-1], reading)

    def _keep_state_norm(self, layer: int, call: RuleCall, width: int, reading: Reading) -> None:
        """Put the norm after each row's newest token in the place of the one kept from the call before."""
        norm, group = call.state_norm, reading.last_group
        assert norm is not None
        if norm.shape[1] > 1:
            norm = norm.gather(1, reading.last[:, None, None].expand(-1, 1, norm.shape[2]))
        norm = _spread(norm[:, 0], call.heads, width)
        before = reading.carry.get((id(self), layer))
        if before is not None:
            # A row that read nothing real this time keeps what it had.
            norm, group = torch.where((group > 0)[:, None], norm, before[0]), torch.where(group > 0, group, before[1])
            self._state_norm[layer].move(reading.groups, before[1], -before[0])
            self._sequences[layer].move(reading.groups, before[1], -torch.ones_like(before[1]))
        self._state_norm[layer].move(reading.groups, group, norm)
        self._sequences[layer].move(reading.groups, group, torch.ones_like(group))
        reading.carry[id(self), layer] = (norm, group)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        grouped, each = ("label", "fold", "layer"), ("label", "fold", "layer", "head")
        meanings = {
            "beta": "write strength beta, summed over tokens",
            "alpha": "decay alpha, summed over tokens",
            "log_alpha": "ln of the decay, summed over tokens",
            "gate": "openness of the output gate, sigmoid(z) averaged over channels, summed over tokens",
            "update_norm": "norm of the written update ||beta (v - S^T k)||, summed over tokens",
            "error_ratio": "prediction error ||v - S^T k|| / ||v||, summed over tokens",
        }
        heads = self.decoder.part(self.layers[0], "mixer").num_v_heads
        count = len(labels)

        def stacked(tallies: dict[int, Sums], width: int | None) -> np.ndarray:
            return stack([tallies[layer].array(count) for layer in self.layers], width)

        variables = {
            f"{name}_sum": (each, stacked({x: self._sums[x][name] for x in self.layers}, heads), _UNITS.get(name, "1"), meaning)
            for name, meaning in meanings.items()
        }
        asked = stacked({layer: self._sums[layer]["error_tokens"] for layer in self.layers}, heads).round().astype(np.int64)
        variables["error_tokens"] = (each, asked, "token", "tokens over which the prediction error was summed")
        variables["state_norm_sum"] = (each, stacked(self._state_norm, heads), "1", "norm of the state at the end, summed over sequences")
        for name, tallies, meaning in (("tokens", self._tokens, "tokens read"), ("sequences", self._sequences, "sequences read")):
            variables[name] = (grouped, stacked(tallies, None).round().astype(np.int64), name.removesuffix("s"), meaning)
        for name in ("beta", "half_life", "gate"):
            counts = np.stack([self._histograms[layer][name].array(count) for layer in self.layers], axis=1)
            variables[f"{name}_hist"] = (("label", "layer", "head", f"{name}_bin"), counts, "token", f"tokens by {name.replace('_', ' ')}")
        variables["key_moment"] = (
            ("label", "layer", "key_head", "channel", "channel_2"),
            self._moment_array(count),
            "1",
            "sum of k k^T over tokens",
        )
        return self._dataset(labels, variables, **_bins())

    def _moment_array(self, labels: int) -> np.ndarray:
        mixer = self.decoder.part(self.layers[0], "mixer")
        out = np.zeros((labels, len(self.layers), mixer.num_k_heads, mixer.head_k_dim, mixer.head_k_dim))
        for index, layer in enumerate(self.layers):
            for label, moment in self._moments[layer].items():
                out[label, index] = moment.cpu().numpy()
        return out


_UNITS = {"log_alpha": "nat"}


def half_life_bin(g: torch.Tensor) -> torch.Tensor:
    """Bin of each token's half-life ln(1/2) / g, g = ln alpha <= 0; a head that forgets nothing is in the last bin."""
    octave = math.log2(math.log(2)) - torch.log2(-g)
    return ((octave - HALF_LIFE_FIRST) * BINS_AN_OCTAVE).floor().clamp(0, HALF_LIFE_BINS - 1)


def stack(by_layer: list[np.ndarray], width: int | None) -> np.ndarray:
    """[label, fold, layer, *shape] of per-layer sums; a tally never added to counts as zeros of this width."""
    if width is not None:
        by_layer = [array if array.ndim == 3 else np.zeros((*array.shape[:2], width)) for array in by_layer]
    return np.stack(by_layer, axis=2)


def _bins() -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    gate = np.arange(GATE_BINS) / GATE_BINS
    half_life = 2.0 ** (HALF_LIFE_FIRST + np.arange(HALF_LIFE_BINS) / BINS_AN_OCTAVE)
    return {
        "beta_bin": ("beta_bin", gate, {"units": "1", "long_name": "lower edge"}),
        "gate_bin": ("gate_bin", gate, {"units": "1", "long_name": "lower edge"}),
        "half_life_bin": ("half_life_bin", half_life, {"units": "token", "long_name": "lower edge"}),
    }


def _spread(values: torch.Tensor, heads: torch.Tensor, width: int) -> torch.Tensor:
    """[..., sampled head] to [..., head], zero for the heads left out."""
    if values.shape[-1] == width:
        return values
    return values.new_zeros(*values.shape[:-1], width).index_copy_(-1, heads, values)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
