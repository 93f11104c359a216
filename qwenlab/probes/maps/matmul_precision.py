"""How precisely matrices in float32 are multiplied: by the kernel of a DeltaNet layer, and by torch."""

from __future__ import annotations

import torch

IEEE = torch.finfo(torch.float32).eps
TF32 = 2.0**-10
_EPS = {"tf32": TF32, "bf16": torch.finfo(torch.bfloat16).eps}


def product_eps(kernel: str, device: str) -> float:
    """The relative spacing of the numbers to which factors in float32 are rounded before they are multiplied.

    The coarser one of the kernel's products and of those that torch makes on this type of device. Fused kernels on a
    GPU count as TF32, whatever the settings: flash-linear-attention asks for TF32 in places by itself.

    kernel  the implementation of the delta rule, as `rule.kernel_on` names it
    """
    fused = kernel.startswith("fla.") or (device != "cpu" and not kernel.startswith("transformers."))
    return max(TF32 if fused else IEEE, _EPS.get(_torch_precision(device), IEEE))


def _torch_precision(device: str) -> str:
    """What torch's products may be rounded to: "ieee", "tf32", "bf16" or "none" (the default, IEEE)."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    return str(backend.matmul.fp32_precision)
