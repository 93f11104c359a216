"""Check what a probe recomputes against what the kernel returned, within the precision of both."""

from __future__ import annotations

import torch

from qwenlab.errors import KernelMismatch
from qwenlab.probes.accumulators import Accumulator

STATE_GAP = 0.05
"""Largest relative distance of our state from the kernel's: far above bfloat16 rounding, far below a wrong formula."""

IEEE = torch.finfo(torch.float32).eps
TF32 = 2.0**-10
_EPS = {"tf32": TF32, "bf16": torch.finfo(torch.bfloat16).eps}


def relative_distance(ours: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return ||ours - exact|| / ||exact|| of matrices [..., row, column], 0 where both are empty."""
    distance, norm = (torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (ours - exact, exact))
    return distance / norm.clamp_min(torch.finfo(torch.float32).tiny)


class StateDeviation(Accumulator):
    """The largest distance of our states from the kernel's, relative to the kernel's, by layer."""

    def __init__(self) -> None:
        self._gaps: dict[int, torch.Tensor] = {}

    def add(self, layer: int, ours: torch.Tensor, kernels: torch.Tensor) -> None:
        """Compare states [batch, head, key channel, channel] of one layer after the same token."""
        gap = relative_distance(ours, kernels.float()).max()
        self._gaps[layer] = torch.maximum(gap, self._gaps.get(layer, gap))

    def check(self, probe: str, fix: str) -> None:
        """Raise KernelMismatch if the states differ. The message names the `probe` and the `fix`."""
        wrong = {layer: float(gap) for layer, gap in self._gaps.items() if not float(gap) <= STATE_GAP}
        if wrong:
            layer, gap = max(wrong.items(), key=lambda item: item[1])
            raise KernelMismatch(
                f"{probe}() recomputes the state, and its result differs from the kernel's: by {100 * gap:.3g} % of "
                f"the norm in layer {layer} (rounding explains at most {100 * STATE_GAP:g} %), "
                f"and in {len(wrong)} of {len(self._gaps)} layers.\n"
                f"The kernel in use follows another convention, or an intervention changed what it computes: {fix}"
            )

    @property
    def attrs(self) -> dict[str, float]:
        """The largest distance of all layers, for the recording; empty if no state was compared."""
        gaps = [float(gap) for gap in self._gaps.values()]
        return {"state_gap": max(gaps)} if gaps else {}


def product_eps(kernel: str, device: str) -> float:
    """Return the machine epsilon of the format to which float32 factors are rounded before multiplication.

    The coarser one of the kernel's products and of torch's on this type of device. Fused kernels on a GPU count as
    TF32, whatever the settings: flash-linear-attention requests TF32 in places.

    kernel  the implementation of the delta rule, as named by `fused_kernels.kernel_on`
    """
    fused = kernel.startswith("fla.") or (device != "cpu" and not kernel.startswith("transformers."))
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    of_torch = str(backend.matmul.fp32_precision)  # "ieee", "tf32", "bf16" or "none" (the default, IEEE)
    return max(TF32 if fused else IEEE, _EPS.get(of_torch, IEEE))
