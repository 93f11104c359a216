"""The attention map of one head over one text."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NotWatched
from qwenlab.record.recording import PROBES, Recording
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import described, result

_NODES = ("implicit_attention", "softmax_attention")


@statistic
def attention_map(source: Source, *, layer: int, head: int, text: int = 0) -> xr.Dataset:
    """The weights of one head over one text, of whichever kind the layer is.

    weight    [query, key]: with which the key's value enters the query's output; NaN for later keys. Signed in a
              DeltaNet layer (its implicit attention), a probability in an attention layer. Where the probe kept means
              over blocks, those, with the position of each block's first token
    mean_gate  [query] value of the head's output gate, mean over channels, where rows were kept

    layer, head, text  of the trunk, of the layer, and the text's number in reading order

    Raises NotWatched where no map was kept, and BadArgument for a layer, head or text of which none was.
    """
    data = _kept(source, layer)
    kind = str(data["kind"].values[data["layer"].values == layer][0])
    where = np.flatnonzero(data["text"].values == text)
    for name, asked, has in (("head", head, data["head"].values), ("text", text, np.unique(data["text"].values))):
        if asked not in has:
            raise BadArgument(f"{name}={asked}: of layer {layer}, maps of {name}s {has.tolist()} are kept.")
    here = data.sel(layer=layer, head=head).isel(row=where)
    position = here["position"].values
    block = int(json.loads(data.attrs.get("sample", "{}")).get("block", 1))
    keys = 1 + int(position.max()) // block
    coords = {"query": position, "key": block * np.arange(keys)}
    weight = xr.DataArray(here["weight"].values[:, :keys], coords, dims=("query", "key"))
    variables = {"weight": described(weight, "1", str(here["weight"].attrs.get("long_name", "weight")))}
    if "mean_gate" in here:
        gate = xr.DataArray(here["mean_gate"].values, {"query": position}, dims="query")
        variables["mean_gate"] = described(gate, "1", "mean value of the output gate")
    return result(data, variables).assign_attrs(layer=layer, head=head, kind=kind, text=text, block=block)


def _kept(source: Source, layer: int) -> xr.Dataset:
    """The node with a map of this layer."""
    kept = kept_maps(source)
    layers = sorted(int(each) for data in kept for each in data["layer"].values)
    if layer not in layers:
        raise BadArgument(f"layer={layer}: maps of layers {layers} are kept.")
    return next(data for data in kept if layer in data["layer"].values)


def kept_maps(source: Source) -> list[xr.Dataset]:
    """The nodes that hold maps, of one or both kinds. Raises NotWatched where there is none."""
    if isinstance(source, Recording):
        found = [_node(source[name], name) for name in _NODES if name in source] or [read(source, _NODES[0])]
    else:
        found = [_node(source, _NODES[0], "weight", "text", "position")]
    kept = [data for data in found if "weight" in data]
    if not kept:
        probes = " or ".join(f"qwenlab.probes.{PROBES[name]}(queries='all')" for name in _NODES)
        raise NotWatched(f"No map was kept: statistics of all rows, but no row.\nWatch with {probes}.")
    return kept


def _node(source: Source, name: str, *needs: str) -> xr.Dataset:
    """A node; where rows were kept, whether others were measured does not matter."""
    if isinstance(source, xr.Dataset) and source.sizes.get("row", 0) > 0:
        source = source.drop_vars("tokens", errors="ignore")
    return read(source, name, *needs)
