"""States that a probe works out, held to those that the kernel returned."""

from __future__ import annotations

import torch

from qwenlab.errors import KernelDisagrees

STATE_GAP = 0.05
"""How far our state may be from the kernel's, relative to it: far beyond bfloat16's rounding, far below a mistake's."""


class StateDeviation:
    """The largest distance of our states from the kernel's, relative to the kernel's, by layer."""

    def __init__(self) -> None:
        self._gaps: dict[int, torch.Tensor] = {}

    def note(self, layer: int, ours: torch.Tensor, kernels: torch.Tensor) -> None:
        """States [batch, head, key channel, channel] of one layer, after the same token."""
        kernels = kernels.float()
        off, whole = (torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (ours - kernels, kernels))
        gap = (off / whole.clamp_min(torch.finfo(torch.float32).tiny)).max()
        self._gaps[layer] = torch.maximum(gap, self._gaps.get(layer, gap))

    def check(self, probe: str, mend: str) -> None:
        """Raise KernelDisagrees where the states are not the same; `probe` works them out."""
        off = {layer: float(gap) for layer, gap in self._gaps.items() if not float(gap) <= STATE_GAP}
        if off:
            layer, gap = max(off.items(), key=lambda item: item[1])
            raise KernelDisagrees(
                f"The state that {probe}() works out is not the one that the kernel returned: they differ by "
                f"{100 * gap:.3g} % of its norm in layer {layer} (at most {100 * STATE_GAP:g} % is rounding), "
                f"and in {len(off)} of {len(self._gaps)} layers.\n"
                f"The kernel in use follows another convention, or an edit changed what it computes: {mend}"
            )

    @property
    def attrs(self) -> dict[str, float]:
        """The largest of all, for the recording; nothing where no state was compared."""
        gaps = [float(gap) for gap in self._gaps.values()]
        return {"state_gap": max(gaps)} if gaps else {}
