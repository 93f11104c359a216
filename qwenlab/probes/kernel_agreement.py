"""Check the states that a probe recomputes against those that the kernel returned."""

from __future__ import annotations

import torch

from qwenlab.errors import KernelMismatch

STATE_GAP = 0.05
"""Largest relative distance of our state from the kernel's: far above bfloat16 rounding, far below a wrong formula."""


class StateDeviation:
    """The largest distance of our states from the kernel's, relative to the kernel's, by layer."""

    def __init__(self) -> None:
        self._gaps: dict[int, torch.Tensor] = {}

    def add(self, layer: int, ours: torch.Tensor, kernels: torch.Tensor) -> None:
        """Compare states [batch, head, key channel, channel] of one layer after the same token."""
        kernels = kernels.float()
        distance, norm = (torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (ours - kernels, kernels))
        gap = (distance / norm.clamp_min(torch.finfo(torch.float32).tiny)).max()
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
