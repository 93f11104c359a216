"""Text and HTML views of a `Recording`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.anatomy.display import COLOURS, LABELS
from qwenlab.checkpoint.families import KINDS

_COUNTED = ("head", "key_head", "expert", "part", "phase", "window", "context_point", "round", "text", "token", "draft")
"""Dims whose sizes are shown."""


def text(tree: xr.DataTree) -> str:
    """A recording in a few lines: its model, the tokens read, and the contents of each node."""
    width = max([8, *map(len, tree.children)])
    lines = [f"Recording of {_title(tree.attrs)}"]
    lines += [f"  {name:<{width}}  {value}" for name, value in _head(tree.attrs)]
    lines += [f"  {name:<{width}}  {_contents(node.to_dataset())}" for name, node in tree.children.items()]
    return "\n".join(lines)


def html(tree: xr.DataTree) -> str:
    """A recording as one block of HTML, with all texts escaped."""
    rows = _head(tree.attrs) + [(name, _contents(node.to_dataset())) for name, node in tree.children.items()]
    facts = [(str(name), str(value)) for name, value in tree.attrs.items()]
    return (
        f'<div class="qwenlab-recording"><b>Recording of {escape(_title(tree.attrs))}</b> {_strip(tree.attrs)}'
        f"{_table(rows)}<details><summary>provenance</summary>{_table(facts)}</details></div>"
    )


def _title(attrs: Mapping[Any, Any]) -> str:
    family = f" ({attrs['family']})" if attrs.get("family") else ""
    return f"{attrs.get('checkpoint') or 'an unnamed model'}{family}"


def _head(attrs: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """Rows about the tokens, the layers and the run."""
    rows = []
    if "tokens" in attrs:
        sequences = _count(int(attrs.get("sequences", 0)), "sequence")
        rows.append(("read", f"{_count(int(attrs['tokens']), 'token')} in {sequences}{_cropped(attrs)}"))
    labels = _loads(attrs, "labels", {})
    if len(labels) > 1:
        rows.append(("labels", ", ".join(f"{label} {count:,}" for label, count in labels.items())))
    kinds = _loads(attrs, "layer_types", [])
    if kinds:
        rows.append(("layers", ", ".join(f"{kinds.count(kind)} {LABELS[kind]}" for kind in KINDS)))
    run = [str(attrs[name]) for name in ("dtype", "device", "created") if attrs.get(name)]
    if run:
        rows.append(("run", ", ".join(run)))
    return rows


def _cropped(attrs: Mapping[Any, Any]) -> str:
    """How many of the tokens read were cropped from their cache; "" if none were."""
    cropped = attrs.get("cropped_tokens", 0)
    if cropped == "unknown":
        return ", of which some may have been cropped from their cache later (rejected drafts)"
    return f", of which {int(cropped):,} were cropped from their cache later (rejected drafts)" if cropped else ""


def _contents(node: xr.Dataset) -> str:
    """The contents of one node: its layers, heads and experts, and the sample that a probe took."""
    parts = []
    if "layer" in node.dims:
        parts.append(f"{_count(node.sizes['layer'], 'layer')} ({_runs(node['layer'].values)})")
    words = {dim: dim.removesuffix("_point").replace("_", " ") for dim in _COUNTED if dim in node.dims}
    parts += [_count(node.sizes[dim], word) for dim, word in words.items()]
    sample = _loads(node.attrs, "sample", {})
    if sample:
        parts.append("sampled: " + ", ".join(f"{name} {_listed(value)}" for name, value in sample.items()))
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _listed(value: Any) -> str:
    """A value of `sample`, with runs of integers contracted."""
    numbers = isinstance(value, list) and all(isinstance(item, int) for item in value)
    return _runs(np.array(value)) if numbers else str(value)


def _runs(numbers: np.ndarray) -> str:
    """Ascending integers, with runs contracted: 0-2 4-6 8."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run))


def _loads(attrs: Mapping[Any, Any], name: str, default: Any) -> Any:
    try:
        return json.loads(attrs.get(name, "null")) or default
    except (json.JSONDecodeError, TypeError):
        return default


def _strip(attrs: Mapping[Any, Any]) -> str:
    """One coloured cell per layer."""
    return "".join(
        f'<span title="layer {layer}: {LABELS.get(kind, escape(str(kind)))}" style="display:inline-block;width:6px;'
        f'height:12px;margin-right:1px;background:{COLOURS.get(kind, "#8A8A8A")}"></span>'
        for layer, kind in enumerate(_loads(attrs, "layer_types", []))
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    style = 'style="text-align:left;padding:1px 12px 1px 0"'
    body = "".join(f"<tr><th {style}>{escape(name)}</th><td {style}>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"
