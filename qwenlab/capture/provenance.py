"""Provenance of what was measured: the model's hash, precision, device and kernels, and the texts that it read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from qwenlab.capture.active import active_interventions
from qwenlab.capture.sequences import SequenceTracker
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.fused_kernels import kernel_of
from qwenlab.checkpoint.module_tree import modules_of
from qwenlab.checkpoint.weights.fingerprint import fingerprint_in_memory
from qwenlab.record.provenance import provenance


def provenance_of(
    checkpoint: Checkpoint,
    texts: Iterable[Sequence[int]],
    labels: Iterable[str] | None = None,
    *,
    seed: int | str = "",
    drafted: bool = False,
) -> dict[str, Any]:
    """Return the provenance of a measurement outside `watch`, under the same names as `Recording.attrs`.

    texts    the token ids of every text that the model read: counted, and hashed together
    labels   the label of each text, by which tokens are counted; by default ""
    seed     of whatever was drawn at random; "" if nothing was
    drafted  the MTP head was run too: the attributes then include its hash as `mtp_head`

    Raises NoMtpHead for `drafted` if the checkpoint has no MTP head.
    """
    decoder, digest, read = decoder_of(checkpoint.model), hashlib.sha256(), [list(map(int, text)) for text in texts]
    by_label: dict[str, int] = {}
    for label, text in zip([""] * len(read) if labels is None else labels, read, strict=True):
        digest.update(repr(text).encode())
        by_label[label] = by_label.get(label, 0) + len(text)
    attrs = provenance(
        checkpoint=checkpoint.facts.source,
        checkpoint_hash=checkpoint.hash_now(),
        **running_on(decoder),
        tokens=sum(by_label.values()),
        sequences=len(read),
        labels=by_label,
        prompts_hash=f"sha256:{digest.hexdigest()[:16]}",
        seed=seed,
        interventions=active_interventions(decoder.module),
    )
    return attrs | ({"mtp_head": fingerprint_in_memory(checkpoint.require_mtp())} if drafted else {})


def facts_of(model: Any, decoder: Decoder, tracker: SequenceTracker, interventions: Sequence[str]) -> dict[str, Any]:
    """Return the root attributes of a recording of a watched model."""
    name, tokens = getattr(decoder.module.config, "_name_or_path", "") or type(model).__name__, tracker.tokens
    return provenance(
        checkpoint=str(model.facts.source) if hasattr(model, "facts") else name,
        checkpoint_hash=model.hash_now() if isinstance(model, Checkpoint) else fingerprint_in_memory(decoder.module),
        **running_on(decoder),
        tokens=sum(tokens.values()),
        sequences=tracker.sequences,
        labels=tokens,
        cropped=tracker.cropped,
        prompts_hash=tracker.prompts_hash,
        seed=torch.initial_seed(),
        interventions=interventions,
    )


def running_on(decoder: Decoder) -> dict[str, Any]:
    """Return family, layer types, precision, device and kernels of a stack of layers."""
    modules, config = modules_of(decoder.module), decoder.module.config
    parameters = [each for _, module in modules for each in module._parameters.values() if each is not None]
    dtypes, devices = {each.dtype for each in parameters}, {each.device for each in parameters}
    return {
        "family": decoder.family.name,
        "layer_types": decoder.layer_types,
        "dtype": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        "device": ", ".join(sorted({_device(device) for device in devices})),
        "kernel_delta_rule": kernel_of(decoder),
        "attention_implementation": str(config._attn_implementation),
        "experts_implementation": str(getattr(config, "_experts_implementation", None) or "none"),
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
