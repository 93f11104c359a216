"""Time and memory by layer, part and kind of mixer."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import KINDS
from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.source import Source, ratio, read, statistic
from qwenlab.stats.base.variables import described, result


@statistic
def time_by_kind(source: Source) -> xr.Dataset:
    """Shares of the time spent in the watched layers, by phase (prefill: many tokens at once, decode: one).

    layer_share        [phase, layer];  part_share [phase, layer, part]
    kind_share         [phase, mixer_kind, part]: all layers of one kind of mixer together
    seconds_per_token  [phase, layer, part];  kind_seconds_per_token [phase, mixer_kind, part]: mean layer of the kind
    clock_share        share of the whole model's time spent reading the clock

    A phase that did not occur is NaN. Shares are of the time of all layers: embeddings and the output head are not
    included.
    """
    data = read(source, "timing", "seconds", "model_seconds", "tokens")
    seconds = data["seconds"]
    total = seconds.sum(["layer", "part"])
    if not total.sum() > 0:
        raise NothingMeasured("No time was measured.\nRun the model inside the `with` of qwenlab.watch.")
    kind = data["kind"]
    of_kind = {name: seconds.where(kind == name, drop=True).drop_vars("kind") for name in KINDS if (kind == name).any()}
    kinds = xr.Variable("mixer_kind", list(of_kind))
    by_kind = xr.concat([part.sum("layer") for part in of_kind.values()], kinds.to_index_variable())
    mean_layer = by_kind / xr.DataArray([part.sizes["layer"] for part in of_kind.values()], dims="mixer_kind")
    tokens = data["tokens"]
    clock = float(data.attrs.get("clock_cost_seconds", np.nan)) * float(data.attrs.get("readings", np.nan))
    variables = {
        "layer_share": (ratio(seconds.sum("part"), total), "share of layer time", "time of the layer"),
        "part_share": (ratio(seconds, total), "share of layer time", "time of the part"),
        "kind_share": (ratio(by_kind, total), "share of layer time", "time of all layers of a kind"),
        "seconds_per_token": (ratio(seconds, tokens), "s/token", "time of the part per token"),
        "kind_seconds_per_token": (ratio(mean_layer, tokens), "s/token", "time of a layer of the kind per token"),
        "clock_share": (clock / data["model_seconds"].sum(), "share of model time", "time spent reading the clock"),
    }
    out = result(data, {name: described(*variable) for name, variable in variables.items()})
    return out.assign_attrs(clock=data.attrs.get("clock", "unknown"))


@statistic
def memory(source: Source) -> xr.Dataset:
    """Bytes of the caches, measured and predicted by the anatomy, by [context_point, store], shortest context first.

    predicted, measured  store: kv (grows with the context), recurrent and convolution (do not)
    ratio                measured / predicted; NaN where nothing was predicted

    Each context_point has the coordinates `context` (tokens per sequence) and `batch` (sequences).
    """
    data = read(source, "memory", "predicted_bytes", "measured_bytes")
    if not data.sizes["context_point"]:
        raise NothingMeasured(
            "No cache was measured: no forward pass had one.\n"
            "Call the model with use_cache=True, or generate, inside the `with`."
        )
    data = data.isel(context_point=np.lexsort((data["batch"].values, data["context"].values)))
    predicted, measured = data["predicted_bytes"].astype(float), data["measured_bytes"].astype(float)
    variables = {
        "predicted": described(predicted, "B", "memory predicted"),
        "measured": described(measured, "B", "memory measured"),
        "ratio": described(ratio(measured, predicted), "1", "memory measured over predicted"),
    }
    out = result(data, variables)
    out["context"].attrs.update(units="token", long_name="context")
    out["batch"].attrs.update(units="sequence", long_name="sequences")
    return out
