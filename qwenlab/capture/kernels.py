"""Names of the kernels that a model's DeltaNet layers call."""

from __future__ import annotations

import sys

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET, Family
from qwenlab.checkpoint.fused_kernels import implementation


def kernel_of(decoder: Decoder) -> str:
    """Return the name of the chunked delta rule that the DeltaNet layers call: a package's kernel, or torch's own.

    Both names, sorted, for a model with layers on the CPU and on a GPU where fused kernels are installed; "none" for a
    model without DeltaNet layers.
    """
    devices = {_device_of(decoder.mixer(layer)) for layer in decoder.layers_of(DELTANET)}
    return ", ".join(sorted({kernel_on(device, decoder.family) for device in devices})) or "none"


def kernel_on(device: str, family: Family) -> str:
    """Return the name of the chunked delta rule that layers on this type of device call."""
    chosen = implementation(vars(sys.modules[family.modeling])[family.chunk_rule], device)
    return f"{chosen.__module__}.{chosen.__name__}"


def _device_of(mixer: nn.Module) -> str:
    """Return the type of device that a mixer runs on; accelerate moves offloaded weights there for each call."""
    device = next(mixer.parameters()).device
    runs_on = getattr(getattr(mixer, "_hf_hook", None), "execution_device", None)
    return torch.device(runs_on).type if device.type == "meta" and runs_on is not None else device.type
