"""Recordings of states and of stored pairs from random values with planted effects, summed by the probes themselves."""

from dataclasses import dataclass

import numpy as np
import torch

from qwenlab.checkpoint.families import DELTANET
from qwenlab.probes import DeltaState, Retention, StatePrecision
from qwenlab.probes.states.base import StateSample
from qwenlab.probes.states.pairs import PairQuery
from qwenlab.record.recording import Recording
from qwenlab.testing import planted, samples
from qwenlab.testing.recordings import facts

FULL_RANK = 8


@dataclass(frozen=True)
class MadeStates:
    """A recording of the nodes "deltastate", "retention" and "state_precision" with its input.

    errors    [token, layer, format, head]
    states    by name, [token, layer, head]: norm, effective_rank, stable_rank, largest, rewrite (0 for the first token
              of a text)
    pairs     by name, [pair, layer, head]: recall, before, written, decayed, error, writes
    sequence, label, distance  int [pair]
    """

    recording: Recording
    texts: samples.Texts
    errors: np.ndarray
    states: dict
    pairs: dict
    sequence: np.ndarray
    label: np.ndarray
    distance: np.ndarray


def made_states(*, seed=0, layers=8, labels=("code", "prose"), sequences=16, length=300, heads=4, pairs=600):
    """A random recording of these probes, with the state of every token measured.

    Norms grow with the square root of the tokens read, up to 64 tokens. Decay halves a stored pair every 32 tokens.
    In head 0 of each layer later writes halve it again in the same time; in the other heads they do nothing.
    Errors grow with the square root of the tokens read. In int8 they are twice as large as in bfloat16.
    """
    rng = np.random.default_rng(seed)
    sizes = dict(linear_num_value_heads=heads, linear_num_key_heads=1, linear_key_head_dim=FULL_RANK)
    decoder = planted.decoder_without_weights(layers, **sizes)
    read = samples.texts(rng, tuple(labels), sequences, length)
    shape = (len(read.sequence), len(decoder.layers_of(DELTANET)), heads)
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
    stored = _pairs(rng, distance, (pairs, *shape[1:]))
    drift = np.sqrt(read.position + 1)[:, None, None, None] * np.array([1, 2])[:, None]
    errors = 1e-3 * drift * rng.gamma(20, 0.05, (*shape[:2], 2, heads))
    nodes = {
        "state_precision": _precision(read, errors, decoder),
        "deltastate": _states(read, states, decoder),
        "retention": _retention(read, stored, which, distance, decoder),
    }
    recording = Recording(
        {name: node.assign_attrs(sample="{}") for name, node in nodes.items()},
        facts(read, decoder, made_of="made of states", seed=seed),
    )
    return MadeStates(recording, read, errors, states, stored, read.sequence[which], read.label[which], distance)


def _pairs(rng, distance, shape):
    before = rng.normal(0.2, 0.05, shape)
    added = rng.uniform(0.3, 0.8, shape)
    decayed = added * np.exp2(-distance / 32)[:, None, None]
    left = decayed.copy()
    left[:, :, 0] *= np.exp2(-distance / 32)[:, None]
    recall = before + left
    writes = distance[:, None, None] * rng.uniform(0.2, 0.9, shape[1:])
    error = np.abs(1 - recall) + rng.gamma(2, 0.05, shape)
    values = {"recall": recall, "before": before, "written": before + added, "decayed": decayed}
    return values | {"error": error, "writes": writes}


def _states(read, states, decoder):
    met = np.broadcast_to((read.position > 0)[:, None, None], states["norm"].shape)
    return _accumulated(DeltaState(every=1), read, states | {"rewrites": met.astype(float)}, decoder)


def _precision(read, errors, decoder):
    by_format = errors.reshape(*errors.shape[:2], -1)
    return _accumulated(StatePrecision(every=1, formats=["bfloat16", "int8"]), read, {"error": by_format}, decoder)


def _accumulated(probe, read, values, decoder):
    """The node of a probe of states, from values [token, layer, column] of every token."""
    probe.start(decoder)
    batch = planted.tokens_of(read)
    chosen = StateSample.of(batch, 1, None)
    token = planted.in_rows(read, np.arange(len(read.sequence)))[chosen.row, chosen.column].numpy()
    probe.accumulate(_all(probe), "mixer", {name: _by_layer(each[token]) for name, each in values.items()}, batch)
    return probe.dataset(list(read.labels))


def _retention(read, stored, which, distance, decoder):
    """The node of the probe where its question is for the planted pairs, each after the token `which`."""
    probe, batch = Retention(every=1, pairs=1), planted.tokens_of(read)
    probe.start(decoder)
    row, column = (torch.from_numpy(each[which]) for each in (read.sequence, read.position))
    steps = StateSample(row, column, column, batch.group[row, column], (len(which),))
    pair = torch.arange(len(which))
    query = PairQuery(steps, steps, pair[:, None], pair, pair, torch.from_numpy(distance), pair[None], column.numpy())
    probe._query = lambda _: query
    probe.accumulate(_all(probe), "mixer", {name: _by_layer(each) for name, each in stored.items()}, batch)
    return probe.dataset(list(read.labels))


def _all(probe):
    return slice(0, len(probe.layers))


def _by_layer(values):
    """Values [row, layer, column] as [layer, row, column]."""
    return torch.from_numpy(np.ascontiguousarray(values)).movedim(1, 0)
