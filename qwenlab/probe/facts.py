"""Provenance of what was watched: the model's hash, precision, device and kernels, and what it read."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.reader import Reader
from qwenlab.probe.rule import kernel_of
from qwenlab.record.provenance import provenance

SAMPLED = 64
"""Values of each parameter that go into the hash of a model without a checkpoint."""


def facts_of(model: Any, decoder: Decoder, reader: Reader) -> dict[str, Any]:
    """The root attrs of a recording."""
    known = getattr(model, "facts", None)
    config: Any = decoder.module.config
    tokens = reader.tokens
    return provenance(
        checkpoint=str(known.source)
        if known is not None
        else getattr(config, "_name_or_path", "") or type(model).__name__,
        checkpoint_hash=known.hash if known is not None else fingerprint(decoder.module),
        **running_on(decoder),
        tokens=sum(tokens.values()),
        sequences=reader.sequences,
        labels=tokens,
        prompts_hash=f"tokens:{int(reader.fingerprint) & (2**64 - 1):016x}",
        seed=torch.initial_seed(),
    )


def running_on(decoder: Decoder) -> dict[str, Any]:
    """What a stack of layers is, in which precision, where, and by which kernels it runs."""
    parameters, config = list(decoder.module.parameters()), decoder.module.config
    return {
        "family": decoder.family.name,
        "layer_types": decoder.layer_types,
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        "device": ", ".join(sorted({_device(p.device) for p in parameters})),
        "kernel_delta_rule": kernel_of(decoder.family),
        "attention_implementation": str(config._attn_implementation),
        "experts_implementation": str(getattr(config, "_experts_implementation", None) or "none"),
    }


def fingerprint(module: nn.Module) -> str:
    """A hash of every parameter's name, shape and dtype and of up to 64 of its values, evenly spaced.

    It tells checkpoints apart without reading all weights; an edit of single weights may escape it, and the prefix says
    so. Values of weights that are offloaded are left out.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not flat.is_meta:  # an offloaded weight is away until its layer runs
            digest.update(flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu().numpy().tobytes())
    return f"sampled-sha256:{digest.hexdigest()}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
