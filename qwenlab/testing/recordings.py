"""Recordings made of random tokens with planted truths, valid to the letter: for tests, and to try without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument
from qwenlab.record.recording import PROBES, Recording
from qwenlab.testing import samples, tallies

MADE = ("deltanet", "attention", "routing", "residual", "timing", "memory")
"""The nodes that a made recording can have."""


@dataclass(frozen=True)
class Made:
    """A made recording and the per-token values it sums: what a test can hold a statistic to."""

    recording: Recording
    texts: samples.Texts
    deltanet: samples.DeltaNetSamples
    attention: samples.AttentionSamples
    routing: samples.RoutingSamples
    residual: samples.ResidualSamples
    half_life: np.ndarray  # planted median, tokens [DeltaNet layer, head]


def made(
    *,
    seed: int = 0,
    layers: int = 8,
    labels: Sequence[str] = ("code", "prose"),
    sequences: int = 16,
    length: int = 24,
    heads: int = 4,
    key_heads: int = 2,
    channels: int = 8,
    attention_heads: int = 4,
    experts: int = 16,
    top_k: int = 4,
    never_used: int = 1,
    specialisation: float = 1.0,
    text_effect: float = 0.3,
    repeat: float = 0.3,
    handover: float = 0.5,
    probes: Sequence[str] = MADE,
) -> Made:
    """A random recording, its per-token values, and the truths planted in them.

    layers                        of the trunk, three DeltaNet to one of attention
    labels, sequences, length     what was read: `sequences` texts of up to `length` tokens, a block of them a label
    heads, key_heads, channels    of the DeltaNet layers
    never_used .. handover        what is planted in the routing: see `testing.samples.routing`
    probes                        the nodes to write, by name

    The same arguments give the same recording. Raises BadArgument for sizes that fit no model.
    """
    if not 1 <= top_k <= experts - never_used:
        raise BadArgument(f"top_k={top_k} of {experts} experts, {never_used} unused: too few are left to choose from.")
    if heads % key_heads:
        raise BadArgument(f"heads={heads} is no multiple of key_heads={key_heads}.")
    if unknown := set(probes) - set(MADE):
        raise BadArgument(f"probes={sorted(unknown)}: a made recording's nodes are {', '.join(MADE)}.")
    rng = np.random.default_rng(seed)
    kinds = samples.layer_types(layers)
    every = np.arange(layers)
    linear, full = (every[[kind == which for kind in kinds]] for which in (DELTANET, ATTENTION))
    half_life = np.exp2(rng.uniform(-1, 8, (len(linear), heads)))
    read = samples.texts(rng, tuple(labels), sequences, length)
    reach = np.exp2(rng.uniform(0, 5, (len(full), attention_heads)))
    planted = dict(specialisation=specialisation, text_effect=text_effect, repeat=repeat, handover=handover)
    deltanet = samples.deltanet(rng, read, linear, half_life, key_heads, channels)
    attention = samples.attention(rng, read, full, reach)
    routing = samples.routing(rng, read, every, experts, top_k, never_used=never_used, **planted)
    residual = samples.residual(rng, read, every)
    tallied: dict[str, Callable[[], xr.Dataset]] = {
        "deltanet": lambda: tallies.deltanet(read, deltanet),
        "attention": lambda: tallies.attention(read, attention),
        "routing": lambda: tallies.routing(read, routing),
        "residual": lambda: tallies.residual(read, residual),
        "timing": lambda: tallies.timing(rng, len(read.sequence), kinds),
        "memory": lambda: tallies.memory(kinds),
    }
    nodes = {name: _named(name, node(), kinds) for name, node in tallied.items() if name in probes}
    facts = samples.facts(read, kinds, made_of=f"made of {experts} experts", seed=seed)
    return Made(Recording(nodes, facts), read, deltanet, attention, routing, residual, half_life)


def made_recording(**planted: Any) -> Recording:
    """A random recording that obeys the rules of a real one; the arguments are those of `made`."""
    return made(**planted).recording


def _named(name: str, node: xr.Dataset, kinds: Sequence[str]) -> xr.Dataset:
    """The node with the kind of each layer, and which probe would have written it."""
    if "layer" in node.dims:
        node = node.assign_coords(kind=("layer", [kinds[layer] for layer in node["layer"].values]))
    return node.assign_attrs(probe=PROBES[name], sample="{}")
