"""Stored attention maps: the map of one head over one text."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, ProbeNotRecorded
from qwenlab.record.recording import PROBES, Recording
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import described, result

_NODES = ("implicit_attention", "softmax_attention")


@statistic
def attention_map(source: Source, *, layer: int, head: int, text: int = 0) -> xr.Dataset:
    """Weights of one head over one text, for either kind of layer.

    weight     [query, key] factor of the key's value in the query's output; NaN for later keys. Signed in a DeltaNet
               layer (its implicit attention), a probability in an attention layer. If the probe stored means over
               blocks, these, with the position of each block's first token
    mean_gate  [query] value of the head's output gate, mean over channels, if rows were stored

    text  index of the text in reading order

    Raises ProbeNotRecorded if no map was stored, and BadArgument for a layer, head or text without a stored map.
    """
    nodes = {int(number): data for data in stored_maps(source) for number in data["layer"].values}
    if layer not in nodes:
        raise BadArgument(f"layer={layer}: there are stored maps of layers {sorted(nodes)}.")
    data = nodes[layer]
    kind = str(data["kind"].values[data["layer"].values == layer][0])
    where = np.flatnonzero(data["text"].values == text)
    for name, index, stored in (("head", head, data["head"].values), ("text", text, np.unique(data["text"].values))):
        if index not in stored:
            raise BadArgument(f"{name}={index}: layer {layer} has stored maps of {name}s {stored.tolist()}.")
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


def stored_maps(source: Source) -> list[xr.Dataset]:
    """Return the nodes with stored maps, of one or both kinds of mixer; raises ProbeNotRecorded if there is none."""
    if isinstance(source, Recording):
        nodes = [_node(source[name], name) for name in _NODES if name in source] or [read(source, _NODES[0])]
    else:
        nodes = [_node(source, _NODES[0], "weight", "text", "position")]
    stored = [data for data in nodes if "weight" in data]
    if not stored:
        probes = " or ".join(f"qwenlab.probes.{PROBES[name]}(queries='all')" for name in _NODES)
        raise ProbeNotRecorded(f"No map was stored, only statistics of rows.\nWatch with {probes}.")
    return stored


def _node(source: Source, name: str, *needs: str) -> xr.Dataset:
    """Read a node; if rows were stored, it needs no measured tokens besides."""
    if isinstance(source, xr.Dataset) and source.sizes.get("row", 0) > 0:
        source = source.drop_vars("tokens", errors="ignore")
    return read(source, name, *needs)
