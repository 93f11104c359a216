"""Output gates and write strengths, per head, of both kinds of mixer."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from qwenlab.record.recording import Recording
from qwenlab.stats.base.source import Source, mixer_nodes, read, statistic
from qwenlab.stats.base.sums import QUANTILES, Estimate, distribution, estimates, join_layers
from qwenlab.stats.base.variables import Variables, described, result

_GATES = {"mean_gate": ("gate", "mean value of the output gate"), "beta": ("beta", "write strength")}


@statistic
def gates(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """Gates over tokens by [layer, head], of both kinds of mixer, in the model's order of layers.

    mean_gate  sigmoid of the output gate's input, averaged over the head's channels, mean over tokens. Attention
               multiplies by it, DeltaNet by z sigmoid(z)
    beta       write strength of DeltaNet (NaN for attention, which has none)

    For each, the mean with its interval, `_quantile` [.., quantile] from 128 equal bins, and `_share` of tokens by bin.
    Layers without an output gate (attention of olmo_hybrid) are left out.
    """
    nodes = mixer_nodes(source, ("deltanet", "attention"), "distance_mass")
    gated = [name for name in nodes if not isinstance(source, Recording) or has_gates(source, name)] or nodes[:1]
    return join_layers([_gates_of(source, name, quantiles, by_label, level) for name in gated])


def has_gates(source: Recording, node: str) -> bool:
    """Whether the recording has this node, of layers with an output gate (attention of olmo_hybrid has none)."""
    return node in source and "gate_hist" in source[node]


def _gates_of(source: Source, node: str, quantiles: Sequence[float], by_label: bool, level: float) -> xr.Dataset:
    data = read(source, node, "gate_hist", "gate_sum", "tokens", by_label=by_label)
    variables: Variables = {}
    for name, (stored, long_name) in _GATES.items():
        if f"{stored}_hist" in data:
            tokens, at, by_bin = distribution(data, f"{stored}_hist", f"{stored}_bin", "equal", quantiles)
            mean = Estimate("1", long_name, 1, sums=(f"{stored}_sum", "tokens"))
            variables |= estimates({**data, "tokens": tokens}, {name: mean}, level)
            variables[f"{name}_quantile"] = described(at, "1", long_name)
            variables[f"{name}_share"] = described(by_bin, "share of tokens", f"tokens by {long_name}")
    return result(data, variables)
