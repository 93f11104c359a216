"""Probe of implicit attention: the weight of each earlier token's value in the output of a DeltaNet head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from qwenlab.capture.buffers import Captured
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.checkpoint.fused_kernels import kernel_on
from qwenlab.errors import KernelMismatch
from qwenlab.probes.base import GROUPED, Variable, summed
from qwenlab.probes.kernel_agreement import IEEE, product_eps
from qwenlab.probes.maps.base import MapProbe
from qwenlab.probes.maps.deltanet_rows import DeltaNetMapRows, EarlierTokens, MeasuredHeads

RECONSTRUCTION = 1e-4
"""Largest relative error of a head's output that our weights reconstruct, against the kernel's, in IEEE float32."""

_CHECKED = {
    "gap_square": ("1", "squared distance of the output made of the weights from the kernel's, summed over tokens"),
    "out_square": ("1", "squared norm of the kernel's output (or a floor), summed over tokens"),
}
_WITHOUT = "squared distance of the output made without key removal from the kernel's, summed"
_PRECISER = (
    "\nHere factors in float32 may be rounded to TF32 or less before they are multiplied. For IEEE products set "
    'TRITON_F32_DEFAULT=ieee before triton is imported, and call torch.set_float32_matmul_precision("highest"); '
    "flash-linear-attention still solves triangular systems in TF32."
)


class ImplicitAttention(MapProbe):
    """The weights w(t, s), signed, with which the value of token s enters the output of a DeltaNet head at token t.

        w(t, s) = beta_s k_s^T  M_(s+1) ... M_t  q_t,    M_i = alpha_i (I - beta_i k_i k_i^T)

    is the delta rule unrolled exactly, with its decay alpha and with the removal of keys by later writes (Yang et al.
    2024, arXiv:2412.06464), computed from the kernel's arguments: the sum over s of w(t, s) v_s is the head's output
    before its norm and gate. That sum is checked against the kernel's output, per head over all measured rows: beyond
    1e-4 of its norm the block raises KernelMismatch. Coarser rounding may explain 2 eps: 1.6 % for an output in
    bfloat16, 0.2 % where the kernel or torch multiplies float32 in TF32, as fused kernels on a GPU do.

    No row is measured of texts that began before the block, since a row needs all earlier tokens; there the state
    before the block only enters the check. For texts that continue from pass to pass, the keys, write strengths and
    decays of earlier tokens are carried along: per layer and token, the channels of its key heads in the model's dtype
    and 12 bytes per head.

    layers, heads, every, queries, block  as in `MapProbe`; heads are value heads
    without_removal  also measure the error of the output of weights with decay alone, M_i = alpha_i, which treat
                     DeltaNet as a sum of decayed writes. It computes each row twice. The state before a pass is used as
                     it is, so read whole texts in one pass for this
    """

    name = "implicit_attention"
    kind = DELTANET

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 64,
        queries: Iterable[int] | Literal["all"] | None = None,
        block: int | None = None,
        without_removal: bool = False,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=every, queries=queries, block=block)
        self.without_removal = without_removal

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self._tolerance, self._products = RECONSTRUCTION, IEEE
        self._indices: dict[torch.device, MeasuredHeads] = {}

    def sites(self, layer: int) -> Iterable[str]:
        rule = ("mixer.rule", "mixer.rule.query", "mixer.rule.out", "mixer.state")
        return (*rule, *(["mixer.gate"] if self.queries is not None else ()))

    def state_heads(self, layer: int) -> Iterable[int]:
        return self.heads

    def checks(self) -> tuple[str, ...]:
        return tuple(self._checked())

    def map_rows(self, layer: int, captured: Captured, tokens: TokenBatch) -> DeltaNetMapRows:
        call, gate = captured["mixer.rule"], captured.get("mixer.gate")
        assert isinstance(call, DeltaRuleCall)
        assert call.out is not None
        assert gate is None or isinstance(gate, torch.Tensor)
        if call.device not in self._indices:
            where, group = call.device.type, call.value.shape[2] // call.key.shape[2]
            self._products = max(self._products, product_eps(kernel_on(where, self.decoder.family), where))
            self._indices[call.device] = MeasuredHeads.of(self.heads, group, call.device)
        self._tolerance = max(self._tolerance, 2 * torch.finfo(call.out.dtype).eps, 2 * self._products)
        heads, name = self._indices[call.device], (id(self), layer)
        earlier: EarlierTokens | None = tokens.carry.get(name)
        if earlier is not None and earlier.begin + earlier.columns != tokens.past:
            earlier = None  # the cache was cropped: earlier tokens are forgotten
        now = EarlierTokens.of(call, heads, tokens)
        known = tokens.carry[name] = now if earlier is None else earlier.extended(now)
        self._prefix_unknown = known.begin > 0
        return DeltaNetMapRows(call, known, heads, known.columns - now.columns, gate, self.without_removal)

    def check(self) -> None:
        gap, out = (self._checks.total(name) for name in _CHECKED)
        error = (gap / out.clip(torch.finfo(torch.float32).tiny)) ** 0.5
        worst = error.max(initial=0)
        if not worst <= self._tolerance:
            place, head = divmod(int(error.argmax()), len(self.heads))
            raise KernelMismatch(
                f"ImplicitAttention() recomputes the output from its weights, and the result differs from the "
                f"kernel's: by {worst:.3g} of the norm in layer {self.layers[place]}, head {self.heads[head]} "
                f"(rounding explains at most {self._tolerance:.3g}), and in "
                f"{int((~(error <= self._tolerance)).sum())} of {error.size} heads.\n"
                "The kernel in use follows another convention, or an intervention changed what it computes: "
                "watch with transformers' own kernel, which models on the CPU use, and without the intervention."
                + (_PRECISER if IEEE < self._products >= self._tolerance / 2 else "")
            )

    def extra_variables(self, labels: int) -> dict[str, Variable]:
        heads = len(self.heads)
        return summed(self._checked(), (*GROUPED, "head"), lambda name: self._checks.array(name, labels, heads))

    def _checked(self) -> dict[str, tuple[str, str]]:
        return _CHECKED | ({"without_removal_gap_square": ("1", _WITHOUT)} if self.without_removal else {})
