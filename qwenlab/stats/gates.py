"""How far the output gates are open, and how strongly DeltaNet writes."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from qwenlab.record.recording import Recording
from qwenlab.stats.base.source import (
    QUANTILES,
    Source,
    described,
    estimated,
    measured,
    ratio,
    read,
    result,
    share,
    sketched,
    statistic,
)
from qwenlab.stats.formulas.quantiles import linear_quantiles

_MIXERS = ("deltanet", "attention")


@statistic
def gates(
    source: Source, *, quantiles: Sequence[float] = QUANTILES, by_label: bool = False, level: float = 0.95
) -> xr.Dataset:
    """Gates over tokens by [layer, head], of both kinds of mixer, the layers in the trunk's order.

    openness   sigmoid of the output gate's input, averaged over the head's channels: attention multiplies by it,
               DeltaNet by z sigmoid(z)
    beta       write strength of DeltaNet (NaN for attention, which has none)

    Each as the mean with its interval, `_quantile` [.., quantile] from 128 equal bins, and `_share` of tokens by bin.
    """
    watched = [name for name in _MIXERS if name in source] if isinstance(source, Recording) else [_mixer(source)]
    nodes = [_of_mixer(source, name, quantiles, by_label, level) for name in watched or _MIXERS[:1]]
    joined = xr.concat(nodes, "layer", data_vars="all", coords="different", compat="equals", join="outer")
    return joined.sortby("layer")


def _mixer(data: xr.Dataset) -> str:
    return "attention" if "distance_mass" in data else "deltanet"


def _of_mixer(source: Source, node: str, quantiles: Sequence[float], by_label: bool, level: float) -> xr.Dataset:
    data = read(source, node, "gate_hist", "gate_sum", "tokens", by_label=by_label)
    variables = _gate(data, "gate", "openness", "openness of the output gate", quantiles, level)
    if "beta_hist" in data:
        variables |= _gate(data, "beta", "beta", "write strength", quantiles, level)
    return result(data, variables)


def _gate(
    data: xr.Dataset, stored: str, name: str, long_name: str, quantiles: Sequence[float], level: float
) -> dict[str, xr.DataArray]:
    histogram, dim = data[f"{stored}_hist"], f"{stored}_bin"
    tokens = measured(data["tokens"], histogram, dim)
    sums = (data[f"{stored}_sum"], tokens)
    at = sketched(linear_quantiles, histogram, dim, "equal", quantiles)
    return {
        **estimated(name, ratio, sums, tokens, units="1", long_name=long_name, level=level, within=(0, 1)),
        f"{name}_quantile": described(at, "1", long_name),
        f"{name}_share": described(share(histogram, dim), "share of tokens", f"tokens by {long_name}"),
    }
