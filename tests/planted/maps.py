"""Recordings of implicit and softmax attention from random rows with planted heads, summed by the probes themselves."""

from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.probes import ImplicitAttention, SoftmaxAttention
from qwenlab.record.recording import Recording
from qwenlab.testing import planted, samples
from qwenlab.testing.recordings import facts

NODES = {DELTANET: "implicit_attention", ATTENTION: "softmax_attention"}


@dataclass(frozen=True)
class Rows:
    """Rows of one kind of layer: weight [token, layer, head, key], signed, 0 for keys after the token.

    openness    of the output gate, [token, layer, head]
    value_norm  [token, layer, head, key], equal for all tokens of a text
    gated_norm  the same with the query's gate applied
    """

    layers: np.ndarray
    weight: np.ndarray
    value_norm: np.ndarray
    gated_norm: np.ndarray
    openness: np.ndarray


@dataclass(frozen=True)
class MadeMaps:
    """A recording of both kinds with its input: the texts, the id of every token, and the rows by kind."""

    recording: Recording
    texts: samples.Texts
    tokens: np.ndarray
    rows: dict


def made_maps(
    *,
    seed=0,
    layers=8,
    labels=("code", "prose"),
    sequences=16,
    length=24,
    heads=4,
    attention_heads=3,
    kinds=(DELTANET, ATTENTION),
):
    """A random recording of both probes of maps, with every row measured and the rows of the first text kept.

    Head 0 of each DeltaNet layer has a half-distance of 2 tokens and no negative weight. Head 0 of each attention layer
    puts nine tenths on the first token, and its gate lets a tenth of that through.
    """
    rng = np.random.default_rng(seed)
    read = samples.texts(rng, tuple(labels), sequences, length)
    tokens = rng.integers(0, 6, len(read.sequence))
    sizes = dict(linear_num_value_heads=heads, linear_num_key_heads=1)
    decoder = planted.decoder_without_weights(
        layers, num_attention_heads=attention_heads, num_key_value_heads=1, **sizes
    )
    counts, rows, nodes = {DELTANET: heads, ATTENTION: attention_heads}, {}, {}
    for kind in kinds:
        rows[kind] = _rows(rng, read, np.array(decoder.layers_of(kind)), counts[kind], kind)
        nodes[NODES[kind]] = _node(read, tokens, kind, rows[kind], decoder)
    return MadeMaps(Recording(nodes, facts(read, decoder, made_of="made of maps", seed=seed)), read, tokens, rows)


def _rows(rng, read, layers, heads, kind):
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
    norm = rng.gamma(9, 0.1, (read.sequences, *shape[1:]))[read.sequence]
    return Rows(layers, weight, norm, gated * norm, rng.uniform(0, 1, shape[:3]))


def _node(read, tokens, kind, rows, decoder):
    """The node that the probe makes where `rows` take the place of a layer's weights."""
    probe = {
        DELTANET: lambda: ImplicitAttention(every=1, queries="all", without_removal=True),
        ATTENTION: lambda: SoftmaxAttention(every=1, queries="all"),
    }[kind]()
    probe.map_rows = lambda layer, captured, batch: PlantedRows(read, rows, probe.layers.index(layer), kind)
    batch = planted.tokens_of(read, tokens)
    probe.start(decoder)
    probe.on_tokens(batch)
    for layer in probe.layers:
        probe.reduce(layer, "mixer", {}, batch)
    node = probe.dataset(list(read.labels))
    first = np.flatnonzero(node["text"].values == 0)
    return node.isel(row=first, key=slice(len(first))).assign_attrs(sample="{}")


class PlantedRows:
    """Rows of one layer, as the probes of maps ask for them."""

    def __init__(self, read, rows, place, kind):
        def of(values):
            return planted.in_rows(read, values[:, place])

        self.weight, self.value, self.gated, self.open = map(
            of, (rows.weight, rows.value_norm, rows.gated_norm, rows.openness)
        )  # [sequence, position, head, key] each; openness [sequence, position, head]
        self.columns, self.kind = self.weight.shape[-1], kind

    def rows(self, where, sample, heads, bounds):
        weight, gated = (
            self._sampled(each, sample)[:, :, heads, : where.columns] for each in (self.weight, self.gated)
        )
        size = weight.abs()
        if self.kind == DELTANET:
            out = size.sum(dim=-1)
            further = {"gap_square": 1e-14 * out, "out_square": out, "without_removal_gap_square": 0.25 * out}
        else:
            contribution = size * gated
            further = {"gated_output": contribution.sum(dim=-1), "gated_output_first": contribution[..., 0]}
            further["mean_gate"] = self.openness(sample)[:, :, heads]
        return weight.transpose(1, 2), further

    def value_norm(self, heads):
        return self.value[:, 0, heads]

    def openness(self, sample):
        return self._sampled(self.open, sample)

    def _sampled(self, values, sample):
        """[sequence, row, ...] of values [sequence, position, ...]"""
        return torch.stack([one[columns] for one, columns in zip(values, sample.columns, strict=True)])
