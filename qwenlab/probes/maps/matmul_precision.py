"""Precision of float32 matrix products, in the kernel of a DeltaNet layer and in torch."""

from __future__ import annotations

import torch

IEEE = torch.finfo(torch.float32).eps
TF32 = 2.0**-10
_EPS = {"tf32": TF32, "bf16": torch.finfo(torch.bfloat16).eps}


def product_eps(kernel: str, device: str) -> float:
    """Return the machine epsilon of the format to which float32 factors are rounded before multiplication.

    The coarser one of the kernel's products and of torch's on this type of device. Fused kernels on a GPU count as
    TF32, whatever the settings: flash-linear-attention requests TF32 in places.

    kernel  the implementation of the delta rule, as named by `delta_rule.kernel_on`
    """
    fused = kernel.startswith("fla.") or (device != "cpu" and not kernel.startswith("transformers."))
    return max(TF32 if fused else IEEE, _EPS.get(_torch_precision(device), IEEE))


def _torch_precision(device: str) -> str:
    """Return the precision of torch's products: "ieee", "tf32", "bf16" or "none" (the default, IEEE)."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    return str(backend.matmul.fp32_precision)
