"""Merge recordings: sums and counts of probes add up; rounds, traces and stored maps are concatenated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import CannotMerge
from qwenlab.record.provenance import cropped_attrs

_SAME = ("format", "checkpoint_hash", "dtype", "layer_types")
_COUNTED = ("tokens", "sequences")
_SAME_IN_NODE = ("probe", "sample", "top_k", "experts", "full_rank", "clock")
_SAME_DECODED = ("rule", "depth", "policy", "temperature", "top_p", "drafting", "origin", "text", "window")
_NUMBERED = {"rounds": "prompt", "trace": "text"}
"""Nodes with one entry per text, and the variable that numbers their texts."""


def merged(first: xr.DataTree, second: xr.DataTree) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """The nodes and root attrs of two recordings, as if read one after the other. Raises CannotMerge."""
    for name in _SAME:
        _require_same(f"root attribute {name!r}", first.attrs.get(name), second.attrs.get(name))
    _require_same("probes", sorted(first.children), sorted(second.children))
    read_before = int(first.attrs.get("sequences", 0))
    datasets = {
        name: _add(name, first[name].to_dataset(), second[name].to_dataset(), read_before) for name in first.children
    }
    return datasets, _attrs(first.attrs, second.attrs)


def _add(name: str, first: xr.Dataset, second: xr.Dataset, read_before: int) -> xr.Dataset:
    """The sum of one node of two recordings; the second was read after `read_before` sequences."""
    for attr in _SAME_IN_NODE + _SAME_DECODED:
        _require_same(f"attribute {attr!r} of node {name!r}", first.attrs.get(attr), second.attrs.get(attr))
    _require_same(f"variables of node {name!r}", sorted(map(str, first)), sorted(map(str, second)))
    if name == "memory":
        return _contexts(first, second)
    if name in _NUMBERED:
        return _texts_after(first, second, _NUMBERED[name])
    if "row" in first.dims:  # stored maps, next to the sums
        maps = [str(variable) for variable in first if "row" in first[variable].dims]
        sums = _add(name, first.drop_vars(maps), second.drop_vars(maps), read_before)
        return sums.merge(_rows_after(first[maps], second[maps], read_before))
    _require_same_coordinates(name, first, second)
    if "fold" in second.dims:  # folds are sequence numbers modulo the number of folds: continue after the first
        second = second.roll(fold=read_before % second.sizes["fold"])
    with xr.set_options(arithmetic_join="exact", keep_attrs=True):
        total = first + second
    return total.assign_attrs(_measured_again(first.attrs, second.attrs))


def _contexts(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Memory is measured, not summed: the contexts of both recordings, without duplicates of context and batch."""
    both = xr.concat(
        [first, second], "context_point", data_vars="minimal", coords="minimal", compat="equals", join="exact"
    )
    pairs = np.stack([both["context"].values, both["batch"].values])
    _, once = np.unique(pairs, axis=1, return_index=True)
    return both.isel(context_point=once).drop_vars("context_point", errors="ignore")


def _rows_after(first: xr.Dataset, second: xr.Dataset, read_before: int) -> xr.Dataset:
    """Rows of maps, the second's after the first's, its texts renumbered; shorter texts get NaN keys."""
    longest = max(first.sizes["key"], second.sizes["key"])
    second = second.assign(text=(second["text"] + read_before).assign_attrs(second["text"].attrs))
    padded = [data.pad(key=(0, longest - data.sizes["key"]), constant_values=np.nan) for data in (first, second)]
    return xr.concat(padded, "row", join="exact", data_vars="minimal", combine_attrs="override").drop_attrs(deep=False)


def _texts_after(first: xr.Dataset, second: xr.Dataset, number: str) -> xr.Dataset:
    """Rounds or traces, the second's after the first's, with its texts renumbered."""
    texts = first.sizes["text"] if "text" in first.dims else int(first[number].max()) + 1 if first[number].size else 0
    second = second.assign({number: (second[number] + texts).assign_attrs(second[number].attrs)})
    joined = [dim for dim in ("round", "token", "text") if dim in first.dims]
    parts = [
        xr.concat([data[[v for v in data if dim in data[v].dims]] for data in (first, second)], dim, join="exact")
        for dim in joined
    ]
    attrs = {name: value for name, value in first.attrs.items() if name != "seconds"}
    if "seconds" in first.attrs and "seconds" in second.attrs:
        attrs["seconds"] = first.attrs["seconds"] + second.attrs["seconds"]
    return xr.merge(parts, join="exact").drop_attrs(deep=False).assign_attrs(attrs)


def _measured_again(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """The readings of both clocks at their mean cost, and the largest distance of states that were computed twice."""
    gaps = [attrs["state_gap"] for attrs in (first, second) if "state_gap" in attrs]
    attrs: dict[str, Any] = {"state_gap": max(gaps)} if gaps else {}
    if "readings" in first:
        readings = first["readings"] + second["readings"]
        cost = first["clock_cost_seconds"] * first["readings"] + second["clock_cost_seconds"] * second["readings"]
        attrs |= {"readings": readings, "clock_cost_seconds": cost / readings if readings else 0.0}
    return attrs


def _attrs(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> dict[str, Any]:
    """Merged provenance: counts add up, prompts are hashed together, other values are joined where they differ."""
    attrs: dict[str, Any] = {}
    for name in {**first, **second}:
        values = [source[name] for source in (first, second) if name in source]
        same = all(value == values[0] for value in values)
        attrs[name] = values[0] if same else "; ".join(map(str, values))
    for name in _COUNTED:
        if name in attrs:
            attrs[name] = int(first.get(name, 0)) + int(second.get(name, 0))
    if "labels" in attrs:
        attrs["labels"] = json.dumps(_counts_by_label(first, second, "labels"))
    if "cropped_tokens" in attrs:
        known = all(isinstance(source.get("cropped_tokens"), int | np.integer) for source in (first, second))
        attrs |= cropped_attrs(_counts_by_label(first, second, "cropped_labels") if known else None)
    if "prompts_hash" in attrs:
        both = f"{first.get('prompts_hash')} {second.get('prompts_hash')}"
        attrs["prompts_hash"] = hashlib.sha256(both.encode()).hexdigest()
    return attrs


def _counts_by_label(first: Mapping[Any, Any], second: Mapping[Any, Any], name: str) -> dict[str, int]:
    """The sums of an attribute of both that has counts by label."""
    counts = [json.loads(source.get(name, "{}")) for source in (first, second)]
    return {label: sum(count.get(label, 0) for count in counts) for label in counts[0] | counts[1]}


def _require_same_coordinates(name: str, first: xr.Dataset, second: xr.Dataset) -> None:
    _require_same(f"coordinates of node {name!r}", sorted(map(str, first.coords)), sorted(map(str, second.coords)))
    for coord in first.coords:
        _require_same(
            f"coordinate {coord!r} of node {name!r}", first[coord].values.tolist(), second[coord].values.tolist()
        )
    for variable in first:
        _require_same(f"dims of {variable!r} of node {name!r}", first[variable].sizes, second[variable].sizes)


def _require_same(what: str, first: object, second: object) -> None:
    if first != second:
        raise CannotMerge(
            f"These recordings differ in {what}: {_short(first)} and {_short(second)}.\n"
            "Merge only recordings of one checkpoint, with the same probes, settings and labels."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:100]}..."
