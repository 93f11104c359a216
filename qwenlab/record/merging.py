"""Recordings added up: nodes of probes hold sums and counts, so reading more is adding; rounds and traces join."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import CannotMerge

_SAME = ("format", "checkpoint_hash", "dtype", "layer_types")
_COUNTED = ("tokens", "sequences")
_SAME_IN_NODE = ("probe", "sample", "top_k", "experts", "full_rank", "clock")
_SAME_DECODED = ("rule", "depth", "policy", "temperature", "top_p", "drafting", "origin", "text", "window")
_NUMBERED = {"rounds": "prompt", "trace": "text"}
"""Nodes kept text by text, and what numbers their texts."""


def merged(first: xr.DataTree, second: xr.DataTree) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """The nodes and root attrs of two recordings read one after the other; raises CannotMerge."""
    for name in _SAME:
        _require_same(f"attribute {name!r}", first.attrs.get(name), second.attrs.get(name))
    _require_same("probes", sorted(first.children), sorted(second.children))
    read_before = int(first.attrs.get("sequences", 0))
    datasets = {
        name: _add(name, first[name].to_dataset(), second[name].to_dataset(), read_before) for name in first.children
    }
    return datasets, _attrs(first.attrs, second.attrs)


def _add(name: str, first: xr.Dataset, second: xr.Dataset, read_before: int) -> xr.Dataset:
    """The sum of one node of two recordings; the second was read after `read_before` sequences."""
    for attr in _SAME_IN_NODE + _SAME_DECODED:
        _require_same(f"{attr!r} of node {name!r}", first.attrs.get(attr), second.attrs.get(attr))
    _require_same(f"variables of node {name!r}", sorted(map(str, first)), sorted(map(str, second)))
    if name == "memory":
        return _contexts(first, second)
    if name in _NUMBERED:
        return _texts_after(first, second, _NUMBERED[name])
    if "row" in first.dims:  # maps that were kept beside the sums
        kept = _with_rows(first)
        sums = _add(name, first.drop_vars(kept), second.drop_vars(kept), read_before)
        return sums.merge(_rows_after(first[kept], second[kept], read_before))
    _require_same_coordinates(name, first, second)
    if "fold" in second.dims:  # folds are sequence numbers modulo their number: go on counting where the first stopped
        second = second.roll(fold=read_before % second.sizes["fold"])
    with xr.set_options(arithmetic_join="exact", keep_attrs=True):
        total = first + second
    return total.assign_attrs(_clock(first.attrs, second.attrs) | _largest(first.attrs, second.attrs))


def _contexts(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Memory is measured, not summed: the contexts of both, each context and batch once."""
    both = xr.concat(
        [first, second], "context_point", data_vars="minimal", coords="minimal", compat="equals", join="exact"
    )
    seen = np.stack([both["context"].values, both["batch"].values])
    _, once = np.unique(seen, axis=1, return_index=True)
    return both.isel(context_point=once).drop_vars("context_point", errors="ignore")


def _with_rows(data: xr.Dataset) -> list[str]:
    return [str(name) for name in data if "row" in data[name].dims]


def _rows_after(first: xr.Dataset, second: xr.Dataset, read_before: int) -> xr.Dataset:
    """Rows of maps: those of the second come after, its texts numbered on; a shorter text's keys end in NaN."""
    longest = max(first.sizes["key"], second.sizes["key"])
    second = second.assign(text=(second["text"] + read_before).assign_attrs(second["text"].attrs))
    padded = [each.pad(key=(0, longest - each.sizes["key"]), constant_values=np.nan) for each in (first, second)]
    return xr.concat(padded, "row", join="exact", data_vars="minimal", combine_attrs="override").drop_attrs(deep=False)


def _texts_after(first: xr.Dataset, second: xr.Dataset, number: str) -> xr.Dataset:
    """Rounds or traces of the texts of both: those of the second come after, numbered on."""
    texts = first.sizes["text"] if "text" in first.dims else int(first[number].max()) + 1 if first[number].size else 0
    second = second.assign({number: (second[number] + texts).assign_attrs(second[number].attrs)})
    joined = [dim for dim in ("round", "token", "text") if dim in first.dims]
    parts = [
        xr.concat([each[[v for v in each if dim in each[v].dims]] for each in (first, second)], dim, join="exact")
        for dim in joined
    ]
    attrs = {name: value for name, value in first.attrs.items() if name != "seconds"}
    if "seconds" in first.attrs and "seconds" in second.attrs:
        attrs["seconds"] = first.attrs["seconds"] + second.attrs["seconds"]
    return xr.merge(parts, join="exact").drop_attrs(deep=False).assign_attrs(attrs)


def _clock(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """What reading the clock cost: the readings of both, at their mean cost."""
    if "readings" not in first:
        return {}
    readings = first["readings"] + second["readings"]
    cost = first["clock_cost_seconds"] * first["readings"] + second["clock_cost_seconds"] * second["readings"]
    return {"readings": readings, "clock_cost_seconds": cost / readings if readings else 0.0}


def _largest(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """How far states worked out twice were apart: the larger distance of both."""
    gaps = [attrs["state_gap"] for attrs in (first, second) if "state_gap" in attrs]
    return {"state_gap": max(gaps)} if gaps else {}


def _attrs(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """Provenance of both: counts added, prompts hashed together, the rest joined where it differs."""
    attrs: dict[str, Any] = {}
    for name in {**first, **second}:
        values = [attrs_[name] for attrs_ in (first, second) if name in attrs_]
        same = all(value == values[0] for value in values)
        attrs[name] = values[0] if same else "; ".join(map(str, values))
    for name in _COUNTED:
        if name in attrs:
            attrs[name] = int(first.get(name, 0)) + int(second.get(name, 0))
    if "labels" in attrs:
        counts = [json.loads(attrs_.get("labels", "{}")) for attrs_ in (first, second)]
        labels = {label: sum(count.get(label, 0) for count in counts) for label in counts[0] | counts[1]}
        attrs["labels"] = json.dumps(labels)
    if "prompts_hash" in attrs:
        both = f"{first.get('prompts_hash')} {second.get('prompts_hash')}"
        attrs["prompts_hash"] = hashlib.sha256(both.encode()).hexdigest()
    return attrs


def _require_same_coordinates(name: str, first: xr.Dataset, second: xr.Dataset) -> None:
    _require_same(f"coordinates of node {name!r}", sorted(map(str, first.coords)), sorted(map(str, second.coords)))
    for coord in first.coords:
        _require_same(f"{coord!r} of node {name!r}", first[coord].values.tolist(), second[coord].values.tolist())
    for variable in first:
        _require_same(f"dims of {variable!r} of node {name!r}", first[variable].sizes, second[variable].sizes)


def _require_same(what: str, first: object, second: object) -> None:
    if first != second:
        raise CannotMerge(
            f"The {what} differ: {_short(first)} and {_short(second)}.\n"
            "Only recordings of one checkpoint, watched alike and with the same labels, can be added up."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:100]}..."
