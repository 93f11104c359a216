"""Nodes of a recording from planted values of tokens: the probes reduce the values, and no model runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr
from transformers import AutoModelForCausalLM

from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.buffers import PARTS, Captured, Part
from qwenlab.capture.tokens import FOLDS, TokenBatch
from qwenlab.checkpoint.anatomy.anatomy import anatomy
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.families import ATTENTION
from qwenlab.probes import Attention, DeltaNet, Memory, Probe, Residual, Routing, Timing
from qwenlab.probes.timing.timing import Span
from qwenlab.testing.models import tiny_config
from qwenlab.testing.samples import AttentionSamples, DeltaNetSamples, ResidualSamples, RoutingSamples, Texts

CALLS = (16, 64)
"""Forward passes of the node "timing": prefill, and decode of one token each."""


@cache
def decoder_without_weights(layers: int, **sizes: Any) -> Decoder:
    """Decoder of a tiny sparse model of these `tiny_config` sizes on torch's meta device: it cannot run."""
    with torch.device("meta"):
        return decoder_of(AutoModelForCausalLM.from_config(tiny_config(layers=layers, **sizes)))


def tokens_of(read: Texts, ids: np.ndarray | None = None) -> TokenBatch:
    """One forward pass over all texts, a text to a row, padded on the right. `ids`: token ids [token], if known."""
    real = in_rows(read, np.ones(len(read.sequence), bool))
    label = in_rows(read, read.label)
    fold = torch.arange(len(real))[:, None] % FOLDS
    return TokenBatch(
        real=real,
        position=torch.arange(real.shape[1]).expand(len(real), -1),
        row=torch.where(real, 1 + label, 0),
        group=torch.where(real, 1 + label * FOLDS + fold, 0),
        first=torch.zeros(len(real), dtype=torch.long),
        numbers=range(len(real)),
        keys=None,
        past=0,
        labels=len(read.labels),
        present=tuple(range(len(read.labels))),
        carry={},
        ids=None if ids is None else in_rows(read, ids),
    )


def in_rows(read: Texts, values: np.ndarray) -> torch.Tensor:
    """Values [token, ...] as [sequence, position, ...], with zeros as padding; float64 becomes float32."""
    rows = np.zeros((read.sequences, int(read.position.max()) + 1, *values.shape[1:]), values.dtype)
    rows[read.sequence, read.position] = values
    tensor = torch.from_numpy(rows)
    return tensor.float() if tensor.is_floating_point() else tensor


def summed(
    probe: Probe, read: Texts, decoder: Decoder, values: Mapping[Part, Mapping[str, np.ndarray]], **others: torch.Tensor
) -> xr.Dataset:
    """Node of a probe that sums these values [token, layer, ...] of each part, and others as they are."""
    probe.start(decoder)
    for part, arrays in values.items():
        reduced = {name: in_rows(read, each).movedim(2, 0) for name, each in arrays.items()} | others
        probe.accumulate(slice(0, len(probe.layers)), part, reduced, tokens_of(read))
    return probe.dataset(list(read.labels))


def deltanet(read: Texts, values: DeltaNetSamples, decoder: Decoder) -> xr.Dataset:
    """Node "deltanet"."""
    names = ("beta", "log_alpha", "gate", "update_norm", "error_ratio", "key")
    arrays = {name: getattr(values, name) for name in names}
    state_norm = torch.from_numpy(values.state_norm).float().movedim(1, 0)
    return summed(DeltaNet(every=1, prediction_heads="all"), read, decoder, {"mixer": arrays}, state_norm=state_norm)


def attention(read: Texts, values: AttentionSamples, decoder: Decoder) -> xr.Dataset:
    """Node "attention". The queries are log-probabilities and the keys unit vectors: their softmax is what we plant."""
    probe, tokens = Attention(every=1), tokens_of(read)
    probe.start(decoder)
    score = in_rows(read, values.probability).clamp_min(torch.finfo(torch.float32).tiny).log()
    gate = torch.logit(in_rows(read, values.gate))
    key = torch.eye(score.shape[-1]).expand(tokens.batch, 1, -1, -1)
    for place, layer in enumerate(values.layers.tolist()):
        call = AttentionCall(score[:, :, place].transpose(1, 2), key, scaling=1.0)
        captured: Captured = {"mixer.attention": call, "mixer.gate": gate[:, :, place, :, None]}
        reduced = probe.reduce(layer, "mixer", captured, tokens)
        if reduced is not None:
            one_layer = {name: tensor[None] for name, tensor in reduced.items()}
            probe.accumulate(slice(place, place + 1), "mixer", one_layer, tokens)
    return probe.dataset(list(read.labels))


def routing(read: Texts, values: RoutingSamples, decoder: Decoder) -> xr.Dataset:
    """Node "routing", with a shared expert."""
    with np.errstate(divide="ignore"):  # experts that are never used have the logit -inf
        logits = np.log(values.probability)
    share, gate = values.shared_share, values.shared_gate
    arrays = {
        "logits": logits,
        "weights": np.take_along_axis(values.probability, values.chosen, axis=-1),
        "chosen": values.chosen,
        "shared_gate": gate,
        "shared_norm": np.divide(share, gate, out=np.zeros_like(share), where=gate > 0),  # the share is of gate * norm
        "routed_norm": 1 - share,
    }
    return summed(Routing(every=1), read, decoder, {"mlp": arrays})


def residual(read: Texts, values: ResidualSamples, decoder: Decoder) -> xr.Dataset:
    """Node "residual"."""
    product = values.cosine * values.norm * values.stream_norm
    arrays = {"norm": values.norm, "stream_norm": values.stream_norm, "product": product}
    by_part = {part: {name: each[..., number] for name, each in arrays.items()} for number, part in enumerate(PARTS)}
    return summed(Residual(every=1), read, decoder, by_part)


def timing(rng: np.random.Generator, read: Texts, decoder: Decoder) -> xr.Dataset:
    """Node "timing": attention costs more than DeltaNet, and a token costs more in decode than in prefill."""
    probe = Timing()
    probe.start(decoder)
    costs = np.array([[2e-5 if kind == ATTENTION else 1e-5, 1.5e-5, 1e-6] for kind in decoder.layer_types])
    tokens = [len(read.sequence), CALLS[1]]
    seconds = np.stack([costs * tokens[0], 4 * costs * tokens[1]]) * rng.uniform(0.9, 1.1, (2, *costs.shape))
    for phase, calls in enumerate(CALLS):
        spans: list[Span] = []
        for layer, (mixer, mlp, rest) in enumerate((seconds[phase] / calls).tolist()):
            parts = {"mixer": mixer, "mlp": mlp, "rest": mixer + mlp + rest}
            spans += [(part, layer, 0.0, ended) for part, ended in parts.items()]
        for number in range(calls):  # the last one gets the time of the decoder in all passes
            probe.add_pass(phase, spans, [(0.0, 1.1 * float(seconds[phase].sum()) * (number == calls - 1))])
    probe.tokens, probe.readings, probe.clock_cost = [torch.tensor(n) for n in tokens], 80 * len(costs), 2e-7
    return probe.dataset(list(read.labels))


def memory(read: Texts, decoder: Decoder) -> xr.Dataset:
    """Node "memory": caches of one sequence at eight contexts. A KV cache has 256 B per layer more than predicted."""
    probe = Memory()
    probe.start(decoder)
    known, overhead = anatomy(decoder.module), 256 * len(decoder.layers_of(ATTENTION))
    for context in (2 ** np.arange(4, 12)).tolist():
        sizes = {"keys": known.kv_bytes(context) + overhead}
        sizes |= {"recurrent_states": known.recurrent_bytes(), "conv_states": known.convolution_bytes()}
        stores = {name: torch.empty(size, dtype=torch.uint8, device="meta") for name, size in sizes.items()}
        cache: Any = SimpleNamespace(layers=[SimpleNamespace(**stores)])
        forward_pass: Any = SimpleNamespace(past=0, width=context, batch=1)
        probe.on_cache(cache, forward_pass)
    return probe.dataset(list(read.labels))
