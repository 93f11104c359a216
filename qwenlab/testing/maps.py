"""Made recordings of implicit and softmax attention: random rows with planted heads, and the sums that probes keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.record.recording import PROBES, Recording
from qwenlab.testing import samples
from qwenlab.testing.samples import FOLDS
from qwenlab.testing.tallies import DISTANCE_BINS

NODES = {DELTANET: "implicit_attention", ATTENTION: "softmax_attention"}


@dataclass(frozen=True)
class Rows:
    """Rows of one kind of layer: weight [token, layer, head, key], signed and 0 beyond the token.

    openness    [token, layer, head], of the output gate
    value_norm  [token, layer, head, key];  gated_norm  the same behind the query's gate
    """

    layers: np.ndarray
    weight: np.ndarray
    value_norm: np.ndarray
    gated_norm: np.ndarray
    openness: np.ndarray


@dataclass(frozen=True)
class MadeMaps:
    """A made recording of both kinds and what it sums: the texts, the id of every token, and rows by kind."""

    recording: Recording
    texts: samples.Texts
    tokens: np.ndarray
    rows: dict[str, Rows]


def made_maps(
    *,
    seed: int = 0,
    layers: int = 8,
    labels: Sequence[str] = ("code", "prose"),
    sequences: int = 16,
    length: int = 24,
    heads: int = 4,
    attention_heads: int = 3,
    kinds: Sequence[str] = (DELTANET, ATTENTION),
) -> MadeMaps:
    """A random recording of both probes of maps, every row measured and the rows of the first text kept.

    Head 0 of each DeltaNet layer fades to a half in 2 tokens and has no negative weight; head 0 of each attention layer
    gives nine tenths to the first token, and its gate is shut to all but a tenth for that.
    """
    rng = np.random.default_rng(seed)
    read = samples.texts(rng, tuple(labels), sequences, length)
    tokens = rng.integers(0, 6, len(read.sequence))
    types = np.array(samples.layer_types(layers))
    counts = {DELTANET: heads, ATTENTION: attention_heads}
    rows = {kind: _rows(rng, read, np.flatnonzero(types == kind), counts[kind], kind) for kind in kinds}
    nodes = {NODES[kind]: _node(read, tokens, kind, seen) for kind, seen in rows.items()}
    facts = samples.facts(read, types.tolist(), made_of="made of maps", seed=seed)
    return MadeMaps(Recording(nodes, facts), read, tokens, rows)


def _rows(rng: np.random.Generator, read: samples.Texts, layers: np.ndarray, heads: int, kind: str) -> Rows:
    longest = int(read.position.max()) + 1
    shape = (len(read.sequence), len(layers), heads, longest)
    distance = (read.position[:, None] - np.arange(longest))[:, None, None, :]
    weight = rng.normal(size=shape) * np.exp2(-np.abs(distance) / np.exp2(rng.uniform(0, 5, (len(layers), heads, 1))))
    gated = rng.uniform(0.1, 1, shape)
    if kind == DELTANET:
        weight[:, :, 0] = np.exp2(-np.abs(distance[:, :, 0]) / 2)
    else:
        weight = np.abs(weight)
        weight[:, :, 0, 0], gated[:, :, 0, 0] = 0, 0.1
    weight = np.where(distance >= 0, weight, 0)
    if kind == ATTENTION:
        others = weight[:, :, 0].sum(axis=-1)
        weight[:, :, 0, 0] = np.where(others > 0, 9 * others, 1)
        weight /= weight.sum(axis=-1, keepdims=True)
    norm = rng.gamma(9, 0.1, shape)
    return Rows(layers, weight, norm, gated * norm, rng.uniform(0, 1, shape[:3]))


def _node(read: samples.Texts, tokens: np.ndarray, kind: str, seen: Rows) -> xr.Dataset:
    """Sums of every row's statistics, each written out for a row at a time."""
    longest, count = seen.weight.shape[-1], len(tokens)
    size = np.abs(seen.weight)
    total = size.sum(axis=-1)
    share = size / total[..., None]
    distance = read.position[:, None] - np.arange(longest)
    again = _again(read, tokens, longest)
    at = np.broadcast_to(again[:, None, None], share.shape)
    on_previous = np.broadcast_to((distance == 1)[:, None, None], share.shape)
    even = np.broadcast_to((again.sum(axis=1) / (read.position + 1))[:, None, None], total.shape)
    per_token = {
        "mass": total,
        "first_mass": share[..., 0],
        "first_even": np.broadcast_to(1 / (read.position + 1)[:, None, None], total.shape),
        "previous_mass": (share * on_previous).sum(axis=-1),
        "self_mass": share[np.arange(count), :, :, read.position],
        "distance": (share * distance[:, None, None]).sum(axis=-1),
        "entropy": -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1),
        "induction": (share * at).sum(axis=-1),
        "induction_even": even,
        "output": (size * seen.value_norm).sum(axis=-1),
        "output_first": (size * seen.value_norm)[..., 0],
    }
    if kind == DELTANET:
        per_token["negative"] = (share * (seen.weight < 0)).sum(axis=-1)
        per_token |= {"gap_square": 1e-14 * total, "without_removal_gap_square": 0.25 * total, "out_square": total}
    else:
        per_token["gated_output"] = (size * seen.gated_norm).sum(axis=-1)
        per_token["gated_output_first"] = (size * seen.gated_norm)[..., 0]
        per_token["openness"] = seen.openness
    bins = np.searchsorted(DISTANCE_BINS, distance.clip(0), side="right") - 1
    by_distance = np.zeros((*total.shape, len(DISTANCE_BINS)))
    for token, key in np.ndindex(bins.shape):
        by_distance[token, :, :, bins[token, key]] += share[token, :, :, key]
    units = {"distance": "token", "entropy": "nat"}
    by_head = ("label", "fold", "layer", "head")
    data: dict[str, xr.Variable] = {
        f"{name}_sum": xr.Variable(by_head, _sums(read, values), {"units": units.get(name, "1"), "long_name": name})
        for name, values in per_token.items()
    }
    ones = np.ones((count, len(seen.layers)))
    for name, values in (("tokens", ones), ("induction_rows", ones * again.any(axis=1, keepdims=True))):
        sums = _sums(read, values).astype(np.int64)
        data[name] = xr.Variable(by_head[:3], sums, {"units": "token", "long_name": name})
    dims = (*by_head, "distance_bin")
    data["distance_mass"] = xr.Variable(dims, _sums(read, by_distance), {"units": "1", "long_name": "by distance"})
    return xr.Dataset(
        data | _kept(read, seen), _coords(read, kind, seen), {"probe": PROBES[NODES[kind]], "sample": "{}"}
    )


def _kept(read: samples.Texts, seen: Rows) -> dict[str, xr.Variable]:
    """The rows of the first text, as `queries="all"` keeps them."""
    rows = read.sequence == 0
    position = read.position[rows]
    weight = seen.weight[rows][..., : len(position)].transpose(1, 2, 0, 3).astype(np.float32)
    weight[:, :, np.arange(len(position)) > position[:, None]] = np.nan
    openness = seen.openness[rows].transpose(1, 2, 0).astype(np.float32)
    by_row = ("layer", "head", "row")
    return {
        "weight": xr.Variable((*by_row, "key"), weight, {"units": "1", "long_name": "weight"}),
        "openness": xr.Variable(by_row, openness, {"units": "1", "long_name": "openness of the output gate"}),
        "text": xr.Variable("row", np.zeros(len(position), np.int64), {"units": "1", "long_name": "text"}),
        "position": xr.Variable("row", position, {"units": "token", "long_name": "position"}),
    }


def _coords(read: samples.Texts, kind: str, seen: Rows) -> dict[str, object]:
    return {
        "label": list(read.labels),
        "fold": np.arange(FOLDS),
        "layer": seen.layers,
        "kind": ("layer", [kind] * len(seen.layers)),
        "head": np.arange(seen.weight.shape[2]),
        "distance_bin": DISTANCE_BINS,
    }


def _again(read: samples.Texts, tokens: np.ndarray, longest: int) -> np.ndarray:
    """bool [token, key]: keys before the token that came right after an earlier occurrence of it."""
    out = np.zeros((len(tokens), longest), dtype=bool)
    for token, position in enumerate(read.position):
        begin = token - position
        for key in range(1, position):
            out[token, key] = bool(tokens[begin + key - 1] == tokens[token])
    return out


def _sums(read: samples.Texts, values: np.ndarray) -> np.ndarray:
    """Sums of values [token, ...] by label and fold."""
    total = np.zeros((len(read.labels), FOLDS, *values.shape[1:]))
    np.add.at(total, (read.label, read.fold), values)
    return total
