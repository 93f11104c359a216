"""Per-token values of a made-up model, with truths planted in them: what a recording is made of. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.record.provenance import provenance

FOLDS = 8


@dataclass(frozen=True)
class Texts:
    """Which sequence, position and label each token has; every array is [token]."""

    labels: tuple[str, ...]
    sequence: np.ndarray
    position: np.ndarray
    label: np.ndarray  # number of the label

    @property
    def fold(self) -> np.ndarray:
        """The sequence's number modulo 8."""
        return self.sequence % FOLDS

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return int(self.sequence[-1]) + 1

    @cached_property
    def last(self) -> np.ndarray:
        """The token that ends each sequence, [sequence]."""
        return np.append(np.flatnonzero(np.diff(self.sequence)), len(self.sequence) - 1)


@dataclass(frozen=True)
class DeltaNetSamples:
    """Of the DeltaNet layers: [token, layer, head], key [.., key_head, channel], state_norm [sequence, layer, head]."""

    layers: np.ndarray
    beta: np.ndarray
    log_alpha: np.ndarray
    gate: np.ndarray
    update_norm: np.ndarray
    error_ratio: np.ndarray
    key: np.ndarray
    state_norm: np.ndarray


@dataclass(frozen=True)
class AttentionSamples:
    """Of the attention layers: probabilities [token, layer, head, key position]; gate [token, layer, head]."""

    layers: np.ndarray
    probability: np.ndarray
    gate: np.ndarray


@dataclass(frozen=True)
class RoutingSamples:
    """Of all layers: the router's softmax [token, layer, expert]; the shared expert's gate and share [token, layer]."""

    layers: np.ndarray
    top_k: int
    probability: np.ndarray
    shared_gate: np.ndarray
    shared_share: np.ndarray

    @cached_property
    def chosen(self) -> np.ndarray:
        """The top k experts, the likeliest first: [token, layer, slot]."""
        return np.argsort(-self.probability, axis=-1, kind="stable")[..., : self.top_k]

    @cached_property
    def chose(self) -> np.ndarray:
        """Whether the expert is among the top k: bool [token, layer, expert]."""
        chose = np.zeros(self.probability.shape, bool)
        np.put_along_axis(chose, self.chosen, True, axis=-1)
        return chose


@dataclass(frozen=True)
class ResidualSamples:
    """Of all layers: [token, layer, part], part = mixer, mlp."""

    layers: np.ndarray
    norm: np.ndarray
    stream_norm: np.ndarray
    cosine: np.ndarray


def facts(read: Texts, layer_types: Sequence[str], *, made_of: str, seed: int) -> dict[str, Any]:
    """Provenance of a recording that no model made."""
    counts = np.bincount(read.label, minlength=len(read.labels)).tolist()
    return provenance(
        checkpoint="made-up",
        checkpoint_hash=made_of,
        family="qwen3_5_moe",
        layer_types=layer_types,
        dtype="float64",
        device="none",
        kernel_delta_rule="none",
        attention_implementation="none",
        experts_implementation="none",
        tokens=len(read.sequence),
        sequences=read.sequences,
        labels=dict(zip(read.labels, counts, strict=True)),
        prompts_hash=str(seed),
        seed=seed,
    )


def layer_types(layers: int) -> tuple[str, ...]:
    """Three DeltaNet layers, then one of attention, and again."""
    return tuple(ATTENTION if layer % 4 == 3 else DELTANET for layer in range(layers))


def texts(rng: np.random.Generator, labels: tuple[str, ...], sequences: int, length: int) -> Texts:
    """Sequences of half of `length` tokens to all of it; the first block of them has the first label, and so on."""
    lengths = rng.integers(max(1, length // 2), length + 1, sequences)
    sequence = np.repeat(np.arange(sequences), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    return Texts(labels, sequence, position, sequence * len(labels) // sequences)


def deltanet(
    rng: np.random.Generator, read: Texts, layers: np.ndarray, half_life: np.ndarray, key_heads: int, channels: int
) -> DeltaNetSamples:
    """Values whose half-lives are log-normal around `half_life` [layer, head] tokens, an octave wide."""
    shape = (len(read.sequence), *half_life.shape)
    lives = half_life * np.exp2(rng.normal(size=shape))
    narrow = rng.normal(size=(len(layers), key_heads, channels))  # keys lean to one direction: they collide
    key = rng.normal(size=(len(read.sequence), len(layers), key_heads, channels)) + 0.5 * narrow
    return DeltaNetSamples(
        layers=layers,
        beta=rng.beta(2, 3, shape),
        log_alpha=-np.log(2) / lives,
        gate=_sigmoid(rng.normal(-0.5, 1, shape)),
        update_norm=rng.gamma(2, 0.5, shape),
        error_ratio=rng.gamma(4, 0.25, shape),
        key=key / np.linalg.norm(key, axis=-1, keepdims=True),
        state_norm=rng.gamma(3, 1, (read.sequences, *half_life.shape)),
    )


def attention(rng: np.random.Generator, read: Texts, layers: np.ndarray, reach: np.ndarray) -> AttentionSamples:
    """Rows that fall off with distance over `reach` [layer, head] tokens, beside a share for the first token."""
    length = int(read.position.max()) + 1
    distance = read.position[:, None] - np.arange(length)
    score = -np.abs(distance)[:, None, None, :] / reach[None, :, :, None]
    score = score + rng.normal(0, 0.5, (len(read.sequence), *reach.shape, length))
    score[..., 0] += rng.normal(1, 1, reach.shape)
    score = np.where(distance[:, None, None, :] >= 0, score, -np.inf)
    return AttentionSamples(layers, _softmax(score), _sigmoid(rng.normal(0.5, 1, score.shape[:-1])))


def routing(
    rng: np.random.Generator,
    read: Texts,
    layers: np.ndarray,
    experts: int,
    top_k: int,
    *,
    never_used: int,
    specialisation: float,
    text_effect: float,
    repeat: float,
    handover: float,
) -> RoutingSamples:
    """Router probabilities from logits that add up what is planted.

    never_used      so many experts a layer (the last ones) are never chosen
    specialisation  standard deviation of what a label adds to each expert's logit; 0: routing knows nothing of labels
    text_effect     the same for each single text: what a control that respects texts must not take for specialisation
    repeat          probability that a token routes as the token before it
    handover        correlation of a token's logits in one layer with those in the layer before
    """
    tokens, depth = len(read.sequence), len(layers)
    noise = rng.normal(size=(tokens, depth, experts))
    for layer in range(1, depth):
        noise[:, layer] = handover * noise[:, layer - 1] + np.sqrt(1 - handover**2) * noise[:, layer]
    logits = noise + rng.normal(0, 0.5, (depth, experts))
    logits += specialisation * rng.normal(size=(len(read.labels), depth, experts))[read.label]
    logits += text_effect * rng.normal(size=(read.sequences, depth, experts))[read.sequence]
    logits[..., experts - never_used :] = -np.inf
    for token in np.flatnonzero((read.position > 0) & (rng.random(tokens) < repeat)):
        logits[token] = logits[token - 1]
    return RoutingSamples(
        layers, top_k, _softmax(logits), _sigmoid(rng.normal(size=(tokens, depth))), rng.beta(2, 4, (tokens, depth))
    )


def residual(rng: np.random.Generator, read: Texts, layers: np.ndarray) -> ResidualSamples:
    """Contributions of about a tenth of a stream that grows with depth."""
    shape = (len(read.sequence), len(layers), 2)
    stream = (1 + 0.2 * layers)[:, None] * rng.gamma(20, 0.05, shape)
    return ResidualSamples(layers, stream * rng.gamma(3, 0.04, shape), stream, np.tanh(rng.normal(0.1, 0.2, shape)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
