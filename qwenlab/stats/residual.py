"""Size and direction of what each part adds to the residual stream."""

from __future__ import annotations

import xarray as xr

from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import result

_ADDED = {
    "norm": Estimate("1", "norm of what is added"),
    "stream_norm": Estimate("1", "norm of the stream before"),
    "ratio": Estimate("1", "norm of what is added over that of the stream"),
    "cosine": Estimate("1", "cosine of what is added to the stream", 1, least=-1),
}


@statistic
def residual(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Size and direction of each part's contribution to the stream: means over tokens by [layer, part], with intervals.

    norm         norm of the contribution of the part (mixer or mlp)
    stream_norm  norm of the stream just before
    ratio        norm of the contribution over that of the stream, averaged over tokens (not the ratio of the means)
    cosine       cosine between the two: near 0 new directions, positive grows the stream, negative shrinks it
    """
    data = read(source, "residual", *(f"{name}_sum" for name in _ADDED), "tokens", by_label=by_label)
    return result(data, estimates(data, _ADDED, level))
