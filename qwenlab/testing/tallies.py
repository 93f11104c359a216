"""Per-token values added up into the nodes of a recording: the schema, written plainly in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.testing.samples import (
    FOLDS,
    AttentionSamples,
    DeltaNetSamples,
    ResidualSamples,
    RoutingSamples,
    Texts,
)

UNIT_BINS = np.arange(128) / 128
HALF_LIFE_BINS = np.exp2(-6 + np.arange(160) / 5)
DISTANCE_BINS = np.array([0, 1, *(step * 2**octave for octave in range(1, 26) for step in (1, 1.5)), 2**26])
WINDOWS = np.array([2, 4, 8, 16, 32, 64, 128])

BY_FOLD = ("label", "fold", "layer")
BY_HEAD = (*BY_FOLD, "head")


def deltanet(read: Texts, seen: DeltaNetSamples) -> xr.Dataset:
    """Node "deltanet"."""
    by_token = partial(_sums, read)
    tokens = _tokens(read, seen.layers)
    every_head = np.broadcast_to(tokens[..., None], by_token(seen.beta).shape)
    moment = np.einsum("nl,nxhc,nxhd->lxhcd", _one_hot(read.label, len(read.labels)), seen.key, seen.key)
    half_life = np.log(0.5) / seen.log_alpha
    return _dataset(
        {
            "tokens": (BY_FOLD, tokens, "token", "tokens read"),
            "beta_sum": (BY_HEAD, by_token(seen.beta), "1", "write strength, summed"),
            "alpha_sum": (BY_HEAD, by_token(np.exp(seen.log_alpha)), "1", "decay, summed"),
            "log_alpha_sum": (BY_HEAD, by_token(seen.log_alpha), "nat", "log decay, summed"),
            "gate_sum": (BY_HEAD, by_token(seen.gate), "1", "openness of the output gate, summed"),
            "update_norm_sum": (BY_HEAD, by_token(seen.update_norm), "1", "norm of the update, summed"),
            "error_ratio_sum": (BY_HEAD, by_token(seen.error_ratio), "1", "error over value norm, summed"),
            "error_tokens": (BY_HEAD, every_head, "token", "tokens whose error was measured"),
            "beta_hist": _histogram(read, seen.beta, UNIT_BINS, "beta_bin", "write strength"),
            "half_life_hist": _histogram(read, half_life, HALF_LIFE_BINS, "half_life_bin", "half-life"),
            "gate_hist": _histogram(read, seen.gate, UNIT_BINS, "gate_bin", "openness of the output gate"),
            "key_moment": (
                ("label", "layer", "key_head", "channel", "channel_2"),
                moment,
                "1",
                "outer products of the keys, summed",
            ),
            "state_norm_sum": (BY_HEAD, _sums_of_texts(read, seen.state_norm), "1", "norm of the last state, summed"),
            "sequences": (BY_FOLD, _ended(read, seen.layers), "sequence", "sequences ended"),
        },
        read,
        layer=seen.layers,
        beta_bin=UNIT_BINS,
        half_life_bin=HALF_LIFE_BINS,
        gate_bin=UNIT_BINS,
    )


def attention(read: Texts, seen: AttentionSamples) -> xr.Dataset:
    """Node "attention"; every token is a query."""
    weights = seen.probability
    key = np.arange(weights.shape[-1])
    distance = read.position[:, None] - key

    def mean(of_keys: np.ndarray) -> np.ndarray:
        """Mean over the row of what each key is worth [token, key]: [token, layer, head]."""
        return np.einsum("nlhk,nk->nlh", weights, of_keys)

    def mass(position: np.ndarray | int) -> np.ndarray:
        return mean(np.broadcast_to(np.reshape(position, (-1, 1)) == key, distance.shape).astype(float))

    entropy = -np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).sum(-1)
    by_distance = np.zeros((len(read.labels), len(DISTANCE_BINS), *weights.shape[1:3]))
    for token, reach in enumerate(read.position):
        bins = np.searchsorted(DISTANCE_BINS, distance[token, : reach + 1], side="right") - 1
        np.add.at(by_distance[read.label[token]], bins, np.moveaxis(weights[token, ..., : reach + 1], -1, 0))
    sums = {
        "entropy_sum": (entropy, "nat", "entropy of the row"),
        "first_mass_sum": (mass(0), "1", "mass on the first token"),
        "previous_mass_sum": (mass(read.position - 1), "1", "mass on the token before"),
        "self_mass_sum": (mass(read.position), "1", "mass on the token itself"),
        "distance_sum": (mean(distance), "token", "mean distance"),
        "gate_sum": (seen.gate, "1", "openness of the output gate"),
    }
    return _dataset(
        {
            "tokens": (BY_FOLD, _tokens(read, seen.layers), "token", "tokens read"),
            **{name: (BY_HEAD, _sums(read, v), units, f"{what}, summed") for name, (v, units, what) in sums.items()},
            "distance_mass": (
                ("label", "layer", "head", "distance_bin"),
                np.moveaxis(by_distance, 1, -1),
                "1",
                "attention by distance",
            ),
            "gate_hist": _histogram(read, seen.gate, UNIT_BINS, "gate_bin", "openness of the output gate"),
        },
        read,
        layer=seen.layers,
        distance_bin=DISTANCE_BINS,
        gate_bin=UNIT_BINS,
    )


def routing(read: Texts, seen: RoutingSamples) -> xr.Dataset:
    """Node "routing", with a shared expert."""
    chose = seen.chose
    experts = chose.shape[-1]
    ranked = -np.sort(-seen.probability, axis=-1)
    kept_weight = np.where(chose, seen.probability, 0)
    kept_weight /= kept_weight.sum(-1, keepdims=True)
    beyond = ranked[..., seen.top_k] if seen.top_k < experts else np.zeros(ranked.shape[:-1])
    follows = (read.position > 0)[:, None]
    kept = np.where(follows, (chose & np.roll(chose, 1, axis=0)).sum(-1), 0)
    first = _one_hot(seen.chosen[..., 0], experts)
    handover = np.zeros((len(seen.layers), experts, experts), np.int64)
    handover[:-1] = np.einsum("nle,nlf->lef", first[:, :-1], first[:, 1:]).round()
    distinct, windows = _windows(read, chose)
    sums = {
        "load": (chose, "slot", "times chosen"),
        "weight_sum": (kept_weight, "1", "routing weight, summed"),
        "entropy_sum": (_entropy(seen.probability), "nat", "entropy of the router's softmax, summed"),
        "topk_entropy_sum": (_entropy(kept_weight), "nat", "entropy of the top-k weights, summed"),
        "margin_sum": (ranked[..., seen.top_k - 1] - beyond, "1", "margin of the k-th expert, summed"),
        "shared_gate_sum": (seen.shared_gate, "1", "gate of the shared expert, summed"),
        "shared_share_sum": (seen.shared_share, "1", "share of the shared expert, summed"),
        "kept_sum": (kept, "slot", "experts kept from the token before, summed"),
        "pairs": (np.broadcast_to(follows, kept.shape).astype(int), "pair", "tokens with a token before"),
    }
    by_window = (*BY_FOLD, "window")
    dims = {"load": (*BY_FOLD, "expert"), "weight_sum": (*BY_FOLD, "expert")}
    together = np.einsum("nle,nlf->lef", chose.astype(float), chose.astype(float)).round().astype(np.int64)
    return _dataset(
        {
            "tokens": (BY_FOLD, _tokens(read, seen.layers), "token", "tokens read"),
            "measured": (BY_FOLD, _tokens(read, seen.layers), "token", "tokens measured"),
            **{n: (dims.get(n, BY_FOLD), _sums(read, v), units, what) for n, (v, units, what) in sums.items()},
            "coactivation": (("layer", "expert", "expert_2"), together, "token", "tokens that chose both"),
            "handover": (("layer", "expert", "expert_next"), handover, "token", "top expert here and in the next"),
            "distinct_sum": (by_window, distinct, "expert", "distinct experts in a window, summed"),
            "windows": (by_window, windows, "window", "complete windows"),
        },
        read,
        layer=seen.layers,
        expert=np.arange(experts),
        expert_2=np.arange(experts),
        expert_next=np.arange(experts),
        window=WINDOWS,
    ).assign_attrs(top_k=seen.top_k, experts=experts)


def residual(read: Texts, seen: ResidualSamples) -> xr.Dataset:
    """Node "residual"."""
    sums = {
        "norm_sum": (seen.norm, "norm of the contribution, summed"),
        "stream_norm_sum": (seen.stream_norm, "norm of the stream before, summed"),
        "ratio_sum": (seen.norm / seen.stream_norm, "contribution over stream, summed"),
        "cosine_sum": (seen.cosine, "cosine to the stream, summed"),
    }
    return _dataset(
        {
            "tokens": (BY_FOLD, _tokens(read, seen.layers), "token", "tokens read"),
            **{name: ((*BY_FOLD, "part"), _sums(read, values), "1", what) for name, (values, what) in sums.items()},
        },
        read,
        layer=seen.layers,
        part=["mixer", "mlp"],
    )


def timing(rng: np.random.Generator, tokens: int, kinds: Sequence[str]) -> xr.Dataset:
    """Node "timing": attention dearer than DeltaNet, decode dearer than prefill by the token."""
    cost = np.array([[2e-5 if kind == ATTENTION else 1e-5, 1.5e-5, 1e-6] for kind in kinds])
    seconds = np.stack([cost * tokens, 4 * cost * 64]) * rng.uniform(0.9, 1.1, (2, *cost.shape))
    counts = {"phase": ["prefill", "decode"], "layer": np.arange(len(kinds)), "part": ["mixer", "mlp", "rest"]}
    whole = seconds.sum((1, 2)) * 1.1
    return xr.Dataset(
        {
            "seconds": (("phase", "layer", "part"), seconds, {"units": "s", "long_name": "time of the part"}),
            "calls": (
                ("phase", "layer"),
                np.repeat([[16], [64]], len(kinds), 1),
                {"units": "call", "long_name": "calls"},
            ),
            "model_seconds": ("phase", whole, {"units": "s", "long_name": "time of the whole model"}),
            "tokens": ("phase", [tokens, 64], {"units": "token", "long_name": "tokens fed"}),
        },
        coords=counts,
        attrs={"clock": "perf_counter", "clock_cost_seconds": 2e-7, "readings": 80 * len(kinds)},
    )


def memory(kinds: Sequence[str]) -> xr.Dataset:
    """Node "memory": caches of one sequence at eight contexts, in a measured and a predicted version."""
    context = 2 ** np.arange(4, 12)
    full, linear = kinds.count(ATTENTION), kinds.count(DELTANET)
    predicted = np.stack([context * 512 * full, np.full(8, 65536 * linear), np.full(8, 3072 * linear)], axis=1)
    measured = predicted + np.array([256 * full, 0, 0])
    dims = ("context_point", "store")
    return xr.Dataset(
        {
            "predicted_bytes": (dims, predicted, {"units": "B", "long_name": "memory foretold"}),
            "measured_bytes": (dims, measured, {"units": "B", "long_name": "memory measured"}),
        },
        coords={
            "context": ("context_point", context, {"units": "token", "long_name": "context"}),
            "batch": ("context_point", np.ones(8, int), {"units": "sequence", "long_name": "batch"}),
            "store": ["kv", "recurrent", "convolution"],
        },
    )


def _dataset(variables: dict[str, tuple[Any, Any, str, str]], read: Texts, **coords: Any) -> xr.Dataset:
    """A node from (dims, values, units, long_name)."""
    data = {
        name: (dims, values, {"units": u, "long_name": what}) for name, (dims, values, u, what) in variables.items()
    }
    return xr.Dataset(data, coords={"label": list(read.labels), "fold": np.arange(FOLDS), **coords})


def _sums(read: Texts, values: np.ndarray) -> np.ndarray:
    """Sums of values [token, ...] by label and fold: [label, fold, ...]."""
    kind = np.int64 if np.issubdtype(values.dtype, np.integer) or values.dtype == bool else np.float64
    total = np.zeros((len(read.labels), FOLDS, *values.shape[1:]), kind)
    np.add.at(total, (read.label, read.fold), values.astype(kind))
    return total


def _sums_of_texts(read: Texts, values: np.ndarray) -> np.ndarray:
    """The same of values [sequence, ...], labelled as the sequence's last token."""
    total = np.zeros((len(read.labels), FOLDS, *values.shape[1:]))
    np.add.at(total, (read.label[read.last], np.arange(len(read.last)) % FOLDS), values)
    return total


def _tokens(read: Texts, layers: np.ndarray) -> np.ndarray:
    return _sums(read, np.ones((len(read.sequence), len(layers)), int))


def _ended(read: Texts, layers: np.ndarray) -> np.ndarray:
    return _sums_of_texts(read, np.ones((read.sequences, len(layers)))).astype(int)


def _histogram(read: Texts, values: np.ndarray, lower: np.ndarray, dim: str, what: str) -> tuple[Any, Any, str, str]:
    """Counts of values [token, layer, head] in bins with these lower edges; the outer bins take what lies beyond."""
    bins = np.clip(np.searchsorted(lower, values, side="right") - 1, 0, len(lower) - 1)
    counts = np.zeros((len(read.labels), *values.shape[1:], len(lower)), np.int64)
    label, layer, head = np.broadcast_arrays(read.label[:, None, None], *np.indices(values.shape)[1:])
    np.add.at(counts, (label, layer, head, bins), 1)
    return ("label", "layer", "head", dim), counts, "token", f"{what}, histogram"


def _windows(read: Texts, chose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct experts in aligned complete windows, and how many windows there were: [label, fold, layer, window]."""
    shape = (len(read.labels), FOLDS, chose.shape[1], len(WINDOWS))
    distinct, windows = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for column, size in enumerate(WINDOWS):
        for last in np.flatnonzero(read.position % size == size - 1):
            place = (read.label[last], read.fold[last], slice(None), column)
            distinct[place] += chose[last - size + 1 : last + 1].any(0).sum(-1)
            windows[place] += 1
    return distinct, windows


def _one_hot(index: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size)[index]


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy of the last axis, nats."""
    return -(probability * np.log(np.where(probability > 0, probability, 1))).sum(-1)
