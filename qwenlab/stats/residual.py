"""What each part of a layer adds to the residual stream."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.stats.base.source import Source, estimated, ratio, read, result, statistic


@statistic
def residual(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """How much each part adds to the stream and in which direction: means over tokens by [layer, part], with intervals.

    norm         norm of what the part (mixer or mlp) adds
    stream_norm  norm of the stream just before
    ratio        norm of what is added over that of the stream, averaged over tokens (not the ratio of the means)
    cosine       cosine between the two: near 0 new directions, positive grows the stream, negative takes away
    """
    needs = ("norm_sum", "stream_norm_sum", "ratio_sum", "cosine_sum", "tokens")
    data = read(source, "residual", *needs, by_label=by_label)
    means = (
        ("norm", "norm of what is added", (0.0, np.inf)),
        ("stream_norm", "norm of the stream before", (0.0, np.inf)),
        ("ratio", "norm of what is added over that of the stream", (0.0, np.inf)),
        ("cosine", "cosine of what is added to the stream", (-1.0, 1.0)),
    )
    tokens = data["tokens"]
    variables: dict[str, xr.DataArray] = {}
    for name, long_name, within in means:
        sums = (data[f"{name}_sum"], tokens)
        variables |= estimated(name, ratio, sums, tokens, units="1", long_name=long_name, level=level, within=within)
    return result(data, variables)
