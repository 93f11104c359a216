"""Provenance of what was watched: the model's hash, precision, device and kernels, and what it read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.reading import Reader
from qwenlab.probe.rule import kernel_of
from qwenlab.record.provenance import provenance

SAMPLED = 64


def facts_of(model: Any, decoder: Decoder, reader: Reader, datasets: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """The root attrs of a recording."""
    known = getattr(model, "facts", None)
    parameters = [parameter for parameter in decoder.module.parameters()]
    config: Any = decoder.module.config
    return provenance(
        checkpoint=str(known.source) if known is not None else getattr(config, "_name_or_path", "") or type(model).__name__,
        checkpoint_hash=known.hash if known is not None else fingerprint(decoder.module),
        family=decoder.family.name,
        layer_types=decoder.layer_types,
        dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        device=", ".join(sorted({_device(p.device) for p in parameters})),
        kernel_delta_rule=kernel_of(decoder.family),
        attention_implementation=str(config._attn_implementation),
        experts_implementation=str(getattr(config, "_experts_implementation", None) or "none"),
        tokens=_tokens(datasets).get("", 0),
        sequences=reader.sequences,
        labels={label: count for label, count in _tokens(datasets).items() if label},
        prompts_hash=f"tokens:{reader.fingerprint.item() & (2**64 - 1):016x}",
        seed=torch.initial_seed(),
    )


def fingerprint(module: nn.Module) -> str:
    """A hash of every parameter's name, shape and dtype and of up to 64 of its values, evenly spaced.

    It tells checkpoints apart without reading all weights; an edit of single weights may escape it, and the prefix says so.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sampled.numpy().tobytes())
    return f"sampled-sha256:{digest.hexdigest()}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _tokens(datasets: Mapping[str, xr.Dataset]) -> dict[str, int]:
    """Real tokens read by label, and in all under the empty name, from the first probe that counted them by label."""
    for dataset in datasets.values():
        if "tokens" in dataset and {"label", "fold", "layer"} <= set(dataset["tokens"].dims):
            by_label = dataset["tokens"].isel(layer=0).sum("fold")
            counts = {str(label): int(n) for label, n in zip(by_label["label"].values, by_label.values, strict=True)}
            return {"": sum(counts.values()), **counts}
    return {}
