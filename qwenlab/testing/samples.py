"""Random values of tokens with planted effects, in NumPy: the input of a random recording."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import softmax

from qwenlab.capture.tokens import FOLDS


@dataclass(frozen=True)
class Texts:
    """Sequence, position and label of each token. Every array is [token]."""

    labels: tuple[str, ...]
    sequence: np.ndarray
    position: np.ndarray
    label: np.ndarray  # index into `labels`

    @property
    def fold(self) -> np.ndarray:
        """Index of the sequence modulo the number of folds."""
        return self.sequence % FOLDS

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return int(self.sequence[-1]) + 1

    @cached_property
    def last(self) -> np.ndarray:
        """Index of the last token of each sequence, [sequence]."""
        return np.append(np.flatnonzero(np.diff(self.sequence)), len(self.sequence) - 1)


@dataclass(frozen=True)
class DeltaNetSamples:
    """Values of DeltaNet layers: [token, layer, head] unless it says otherwise."""

    layers: np.ndarray
    beta: np.ndarray
    log_alpha: np.ndarray
    gate: np.ndarray
    update_norm: np.ndarray
    error_ratio: np.ndarray
    key: np.ndarray  # [token, layer, key head, channel], of norm 1
    state_norm: np.ndarray  # [sequence, layer, head], at the end of the sequence


@dataclass(frozen=True)
class AttentionSamples:
    """Values of the attention layers: probability [token, layer, head, key position], gate [token, layer, head]."""

    layers: np.ndarray
    probability: np.ndarray
    gate: np.ndarray


@dataclass(frozen=True)
class RoutingSamples:
    """Values of the routed experts of every layer."""

    top_k: int
    probability: np.ndarray  # softmax over all experts, [token, layer, expert]
    shared_gate: np.ndarray  # gate of the shared expert, [token, layer]
    shared_share: np.ndarray  # its share of the output, [token, layer]

    @cached_property
    def chosen(self) -> np.ndarray:
        """The top k experts, the most probable first, [token, layer, slot]."""
        return np.argsort(-self.probability, axis=-1, kind="stable")[..., : self.top_k]

    @cached_property
    def chose(self) -> np.ndarray:
        """Whether an expert is among the top k, bool [token, layer, expert]."""
        chose = np.zeros(self.probability.shape, bool)
        np.put_along_axis(chose, self.chosen, True, axis=-1)
        return chose


@dataclass(frozen=True)
class ResidualSamples:
    """Contributions to the residual stream, [token, layer, part], with the parts mixer and mlp."""

    norm: np.ndarray
    stream_norm: np.ndarray
    cosine: np.ndarray


def texts(rng: np.random.Generator, labels: tuple[str, ...], sequences: int, length: int) -> Texts:
    """Sequences of `length` / 2 to `length` tokens. Each label has one block of consecutive sequences."""
    lengths = rng.integers(max(1, length // 2), length + 1, sequences)
    sequence = np.repeat(np.arange(sequences), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    return Texts(labels, sequence, position, sequence * len(labels) // sequences)


def deltanet(
    rng: np.random.Generator, read: Texts, layers: np.ndarray, half_life: np.ndarray, key_heads: int, channels: int
) -> DeltaNetSamples:
    """DeltaNet values whose half-lives are log-normal, one octave wide, around `half_life` [layer, head] in tokens."""
    shape = (len(read.sequence), *half_life.shape)
    lives = half_life * np.exp2(rng.normal(size=shape))
    common = rng.normal(size=(len(layers), key_heads, channels))  # keys of a head share a direction, so they collide
    key = rng.normal(size=(len(read.sequence), len(layers), key_heads, channels)) + 0.5 * common
    return DeltaNetSamples(
        layers=layers,
        beta=_float32(rng.beta(2, 3, shape)),
        log_alpha=_float32(-np.log(2) / lives),
        gate=_float32(_sigmoid(rng.normal(-0.5, 1, shape))),
        update_norm=_float32(rng.gamma(2, 0.5, shape)),
        error_ratio=_float32(rng.gamma(4, 0.25, shape)),
        key=key / np.linalg.norm(key, axis=-1, keepdims=True),
        state_norm=_float32(rng.gamma(3, 1, (read.sequences, *half_life.shape))),
    )


def attention(rng: np.random.Generator, read: Texts, layers: np.ndarray, reach: np.ndarray) -> AttentionSamples:
    """Attention rows that decay with distance over `reach` [layer, head] tokens, with a sink on the first token."""
    length = int(read.position.max()) + 1
    distance = read.position[:, None] - np.arange(length)
    score = -np.abs(distance)[:, None, None, :] / reach[None, :, :, None]
    score = score + rng.normal(0, 0.5, (len(read.sequence), *reach.shape, length))
    score[..., 0] += rng.normal(1, 1, reach.shape)
    score = np.where(distance[:, None, None, :] >= 0, score, -np.inf)
    return AttentionSamples(layers, softmax(score, axis=-1), _float32(_sigmoid(rng.normal(0.5, 1, score.shape[:-1]))))


def routing(
    rng: np.random.Generator,
    read: Texts,
    depth: int,
    experts: int,
    top_k: int,
    *,
    never_used: int,
    specialisation: float,
    text_effect: float,
    repeat: float,
    correlation: float,
) -> RoutingSamples:
    """Router probabilities of `depth` layers, from logits that are the sum of these effects.

    never_used      number of experts of each layer (the last ones) that are never chosen
    specialisation  standard deviation of a label's effect on the logit of each expert; 0: routing ignores labels
    text_effect     the same for each text, which a test of specialisation must not report as an effect of labels
    repeat          probability that a token is routed like the token before it
    correlation     correlation of a token's logits in one layer with those in the layer before
    """
    tokens = len(read.sequence)
    noise = rng.normal(size=(tokens, depth, experts))
    for layer in range(1, depth):
        noise[:, layer] = correlation * noise[:, layer - 1] + np.sqrt(1 - correlation**2) * noise[:, layer]
    logits = noise + rng.normal(0, 0.5, (depth, experts))
    logits += specialisation * rng.normal(size=(len(read.labels), depth, experts))[read.label]
    logits += text_effect * rng.normal(size=(read.sequences, depth, experts))[read.sequence]
    logits[..., experts - never_used :] = -np.inf
    for token in np.flatnonzero((read.position > 0) & (rng.random(tokens) < repeat)):
        logits[token] = logits[token - 1]
    gate, share = _sigmoid(rng.normal(size=(tokens, depth))), rng.beta(2, 4, (tokens, depth))
    return RoutingSamples(top_k, softmax(logits, axis=-1), _float32(gate), _float32(share))


def residual(rng: np.random.Generator, read: Texts, depth: int) -> ResidualSamples:
    """Contributions with a norm of about a tenth of the stream's. The norm of the stream grows with depth."""
    shape = (len(read.sequence), depth, 2)
    stream = (1 + 0.2 * np.arange(depth))[:, None] * rng.gamma(20, 0.05, shape)
    norm, cosine = stream * rng.gamma(3, 0.04, shape), np.tanh(rng.normal(0.1, 0.2, shape))
    return ResidualSamples(_float32(norm), _float32(stream), cosine)


def _float32(values: np.ndarray) -> np.ndarray:
    """Values that float32, the type of the probes, holds exactly; in float64."""
    return values.astype(np.float32).astype(np.float64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
