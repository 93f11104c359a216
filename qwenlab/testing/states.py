"""Made recordings of states and of stored pairs: random values with planted truths, and the sums that probes keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import DELTANET
from qwenlab.record.recording import PROBES, Recording
from qwenlab.testing import samples
from qwenlab.testing.samples import FOLDS

OCTAVES = np.append(0, 2 ** np.arange(21))
FULL_RANK = 8


@dataclass(frozen=True)
class MadeStates:
    """A made recording of the nodes "deltastate", "retention" and "state_precision", and what it sums.

    errors    [token, layer, format, head]
    states    by name, [token, layer, head]: norm, effective_rank, stable_rank, largest, rewrite (of tokens that are not
              the first of their text)
    pairs     by name, [pair, layer, head]: recall, before, written, decayed, error, writes
    sequence, label, distance  int [pair]
    """

    recording: Recording
    texts: samples.Texts
    errors: np.ndarray
    states: dict[str, np.ndarray]
    pairs: dict[str, np.ndarray]
    sequence: np.ndarray
    label: np.ndarray
    distance: np.ndarray


def made_states(
    *,
    seed: int = 0,
    layers: int = 8,
    labels: Sequence[str] = ("code", "prose"),
    sequences: int = 16,
    length: int = 300,
    heads: int = 4,
    pairs: int = 600,
) -> MadeStates:
    """A random recording of these probes, the state of every token measured.

    Norms grow with the square root of the tokens read until 64 of them, and no further. Of a stored pair half is lost
    every 32 tokens by decay, and head 0 of each layer loses another half in that time to later writes; the others none.
    Errors grow with the square root of the tokens read, in int8 twice as large as in bfloat16.
    """
    rng = np.random.default_rng(seed)
    kinds = samples.layer_types(layers)
    deltanet = np.arange(layers)[[kind == DELTANET for kind in kinds]]
    read = samples.texts(rng, tuple(labels), sequences, length)
    shape = (len(read.sequence), len(deltanet), heads)
    size = np.sqrt(np.minimum(read.position + 1, 64))[:, None, None] * rng.gamma(50, 0.02, shape)
    rank = rng.uniform(1, FULL_RANK, shape)
    states = {
        "norm": size,
        "effective_rank": rank,
        "stable_rank": 1 + (rank - 1) / 2,
        "largest": size / np.sqrt(1 + (rank - 1) / 2),
        "rewrite": rng.gamma(5, 0.05, shape) * (read.position > 0)[:, None, None],
    }
    which = rng.integers(0, len(read.sequence), pairs)
    distance = np.minimum(rng.integers(0, 2 ** rng.integers(1, 9, pairs)), read.position[which])
    stored = _pairs(rng, distance, (pairs, len(deltanet), heads))
    drift = np.sqrt(read.position + 1)[:, None, None, None] * np.array([1, 2])[:, None]
    errors = 1e-3 * drift * rng.gamma(20, 0.05, (*shape[:2], 2, heads))
    nodes = {
        "state_precision": _precision(read, errors, labels),
        "deltastate": _states(read, states, labels),
        "retention": _retention(read, stored, which, distance, labels),
    }
    coords = {"layer": deltanet, "kind": ("layer", [DELTANET] * len(deltanet)), "head": np.arange(heads)}
    named = {
        name: node.assign_coords(coords).assign_attrs(probe=PROBES[name], sample="{}") for name, node in nodes.items()
    }
    named["deltastate"].attrs["full_rank"] = FULL_RANK
    facts = samples.facts(read, kinds, made_of="made of states", seed=seed)
    sequence, label = read.sequence[which], read.label[which]
    return MadeStates(Recording(named, facts), read, errors, states, stored, sequence, label, distance)


def _pairs(rng: np.random.Generator, distance: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    before = rng.normal(0.2, 0.05, shape)
    added = rng.uniform(0.3, 0.8, shape)
    decayed = added * np.exp2(-distance / 32)[:, None, None]
    left = decayed.copy()
    left[:, :, 0] *= np.exp2(-distance / 32)[:, None]
    recall = before + left
    writes = distance[:, None, None] * rng.uniform(0.2, 0.9, shape[1:])
    error = np.abs(1 - recall) + rng.gamma(2, 0.05, shape)
    told = {"recall": recall, "before": before, "written": before + added, "decayed": decayed}
    return told | {"error": error, "writes": writes}


def _states(read: samples.Texts, states: dict[str, np.ndarray], labels: Sequence[str]) -> xr.Dataset:
    shape = states["norm"].shape
    place = np.broadcast_to(_octave(read.position)[:, None, None], shape)
    follows = np.broadcast_to((read.position > 0)[:, None, None], shape)
    group = (read.label, read.fold)
    dims = ("label", "fold", "layer", "head", "position_bin")
    variables: dict[str, Any] = {
        f"{name}_sum": (dims, _sums(values, place, *group, len(labels)), _said("1", f"{name}, summed"))
        for name, values in states.items()
    }
    met = _sums(follows.astype(float), place, *group, len(labels)).astype(int)
    variables["rewrites"] = (dims, met, _said("token", "tokens that met a state"))
    tokens = _sums(np.ones(shape), place, *group, len(labels))[:, :, :, 0].astype(int)
    variables["tokens"] = (("label", "fold", "layer", "position_bin"), tokens, _said("token", "tokens measured"))
    return xr.Dataset(variables, {"label": list(labels), "fold": np.arange(FOLDS), "position_bin": OCTAVES})


def _retention(
    read: samples.Texts, stored: dict[str, np.ndarray], which: np.ndarray, distance: np.ndarray, labels: Sequence[str]
) -> xr.Dataset:
    shape, group = stored["recall"].shape, (read.label[which], read.fold[which])
    variables: dict[str, Any] = {}
    places = {"distance": np.broadcast_to(_octave(distance)[:, None, None], shape), "writes": _octave(stored["writes"])}
    for by, place in places.items():
        dims = ("label", "fold", "layer", "head", f"{by}_bin")
        for name, values in stored.items():
            if name != "writes":
                sums = _sums(values, place, *group, len(labels))
                variables[f"{name}_by_{by}"] = (dims, sums, _said("1", f"{name}, summed"))
        count = _sums(np.ones(shape), place, *group, len(labels)).astype(int)
        variables[f"pairs_by_{by}"] = (dims, count, _said("pair", "pairs asked for"))
    tokens = np.zeros((len(labels), FOLDS, shape[1]), int)
    np.add.at(tokens, group, 1)
    variables["tokens"] = (("label", "fold", "layer"), tokens, _said("token", "tokens asked"))
    bins = {"distance_bin": OCTAVES, "writes_bin": OCTAVES}
    return xr.Dataset(variables, {"label": list(labels), "fold": np.arange(FOLDS), **bins})


def _precision(read: samples.Texts, errors: np.ndarray, labels: Sequence[str]) -> xr.Dataset:
    place = np.broadcast_to(_octave(read.position)[:, None, None], errors[:, :, 0].shape)
    group = (read.label, read.fold, len(labels))
    sums = np.stack([_sums(errors[:, :, format], place, *group) for format in range(2)], axis=3)
    tokens = _sums(np.ones(place.shape), place, *group)[:, :, :, 0].astype(int)
    dims = ("label", "fold", "layer", "format", "head", "position_bin")
    by_layer = ("label", "fold", "layer", "position_bin")
    data = {
        "error_sum": (dims, sums, _said("1", "error, summed")),
        "tokens": (by_layer, tokens, _said("token", "tokens measured")),
    }
    bins = {"position_bin": OCTAVES, "format": ["bfloat16", "int8"]}
    return xr.Dataset(data, {"label": list(labels), "fold": np.arange(FOLDS), **bins})


def _octave(number: np.ndarray) -> np.ndarray:
    return np.searchsorted(OCTAVES, number, side="right") - 1


def _sums(values: np.ndarray, place: np.ndarray, label: np.ndarray, fold: np.ndarray, labels: int) -> np.ndarray:
    """[label, fold, layer, head, bin] of values [row, layer, head] in these bins."""
    out = np.zeros((labels, FOLDS, *values.shape[1:], len(OCTAVES)))
    rows, layer, head = np.indices(values.shape)
    np.add.at(out, (label[rows], fold[rows], layer, head, place), values)
    return out


def _said(units: str, long_name: str) -> dict[str, str]:
    return {"units": units, "long_name": long_name}
