"""Random recordings with planted effects, for tests and for trying the statistics and plots without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument
from qwenlab.record.provenance import provenance
from qwenlab.record.recording import Recording
from qwenlab.testing import planted, samples

MADE = ("deltanet", "attention", "routing", "residual", "timing", "memory")
"""Nodes of a random recording."""


@dataclass(frozen=True)
class Made:
    """A random recording with the values of tokens that its probes reduced, to compare statistics with."""

    recording: Recording
    texts: samples.Texts
    deltanet: samples.DeltaNetSamples
    attention: samples.AttentionSamples
    routing: samples.RoutingSamples
    residual: samples.ResidualSamples
    half_life: np.ndarray  # planted median, tokens [DeltaNet layer, head]
    decoder: Decoder  # without weights: the probes read its sizes


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
    correlation: float = 0.5,
    probes: Sequence[str] = MADE,
) -> Made:
    """A random recording, the values of tokens that it sums, and the planted half-lives.

    The probes of `qwenlab.probes` sum the values, so the recording has the variables and units of a real one.

    layers                        number of layers, every fourth of them attention
    labels, sequences, length     `sequences` texts of up to `length` tokens; each label has one block of them
    heads, key_heads, channels    sizes of the DeltaNet layers
    never_used .. correlation     planted effects on the routing, see `testing.samples.routing`
    probes                        names of the nodes to write

    The same arguments give the same recording. Raises BadArgument for sizes that no model has.
    """
    if not 1 <= top_k <= experts - never_used:
        raise BadArgument(f"top_k={top_k} of {experts} experts, {never_used} unused: too few remain to choose from.")
    if heads % key_heads:
        raise BadArgument(f"heads={heads} is not a multiple of key_heads={key_heads}.")
    if unknown := set(probes) - set(MADE):
        raise BadArgument(f"probes={sorted(unknown)}: the nodes of a random recording are {', '.join(MADE)}.")
    decoder = planted.decoder_without_weights(
        layers,
        linear_num_value_heads=heads,
        linear_num_key_heads=key_heads,
        linear_key_head_dim=channels,
        num_attention_heads=attention_heads,
        num_key_value_heads=1,
        num_experts=experts,
        num_experts_per_tok=top_k,
    )
    rng = np.random.default_rng(seed)
    linear, full = (np.array(decoder.layers_of(kind), np.int64) for kind in (DELTANET, ATTENTION))
    half_life = np.exp2(rng.uniform(-1, 8, (len(linear), heads)))
    read = samples.texts(rng, tuple(labels), sequences, length)
    reach = np.exp2(rng.uniform(0, 5, (len(full), attention_heads)))
    effects = dict(specialisation=specialisation, text_effect=text_effect, repeat=repeat, correlation=correlation)
    deltanet = samples.deltanet(rng, read, linear, half_life, key_heads, channels)
    attention = samples.attention(rng, read, full, reach)
    routing = samples.routing(rng, read, layers, experts, top_k, never_used=never_used, **effects)
    residual = samples.residual(rng, read, layers)
    nodes: dict[str, Callable[[], xr.Dataset]] = {
        "deltanet": lambda: planted.deltanet(read, deltanet, decoder),
        "attention": lambda: planted.attention(read, attention, decoder),
        "routing": lambda: planted.routing(read, routing, decoder),
        "residual": lambda: planted.residual(read, residual, decoder),
        "timing": lambda: planted.timing(rng, read, decoder),
        "memory": lambda: planted.memory(read, decoder),
    }
    attrs = facts(read, decoder, made_of=f"made of {experts} experts", seed=seed)
    recording = Recording({name: node() for name, node in nodes.items() if name in probes}, attrs)
    return Made(recording, read, deltanet, attention, routing, residual, half_life, decoder)


def made_recording(**planted: Any) -> Recording:
    """A random recording with the variables and units of a real one. The arguments are those of `made`."""
    return made(**planted).recording


def facts(read: samples.Texts, decoder: Decoder, *, made_of: str, seed: int) -> dict[str, Any]:
    """Provenance of a recording that no model produced; `made_of` replaces the checkpoint's hash."""
    counts = np.bincount(read.label, minlength=len(read.labels)).tolist()
    return provenance(
        checkpoint="made-up",
        checkpoint_hash=made_of,
        family=decoder.family.name,
        layer_types=decoder.layer_types,
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
