"""The probe of the implicit attention of DeltaNet layers: which earlier tokens' values an output is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall, kernel_on
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import KernelDisagrees
from qwenlab.probes.base import Variable
from qwenlab.probes.maps.base import MapProbe
from qwenlab.probes.maps.deltanet_rows import DeltaNetMapRows, EarlierTokens, MeasuredHeads
from qwenlab.probes.maps.matmul_precision import IEEE, product_eps

RECONSTRUCTION = 1e-4
"""How far a head's output, made of our weights, may be from the kernel's, relative to it, in IEEE float32."""

_CHECKED = {
    "gap_square": "squared distance of the output made of the weights from the kernel's, summed over tokens",
    "out_square": "squared norm of the kernel's output (or a floor), summed over tokens",
}
_PRECISER = (
    "\nHere factors in float32 may be rounded to TF32 or less before they are multiplied. For IEEE products set "
    'TRITON_F32_DEFAULT=ieee before triton is imported, and call torch.set_float32_matmul_precision("highest"); '
    "flash-linear-attention still solves triangular systems in TF32."
)
_WITHOUT = {
    "without_removal_gap_square": "squared distance of the output made without key removal from the kernel's, summed",
}


class ImplicitAttention(MapProbe):
    """The weights w(t, s), signed, with which the value of token s enters the output of a DeltaNet head at token t.

        w(t, s) = beta_s k_s^T  M_(s+1) ... M_t  q_t,    M_i = alpha_i (I - beta_i k_i k_i^T)

    is the delta rule unrolled exactly, with its decay alpha and with the removal of keys by later writes (Yang et al.
    2024, arXiv:2412.06464), from what the kernel was given: the sum over s of w(t, s) v_s is the head's output before
    its norm and gate. It is held to the output that the kernel returned, head by head over all rows measured: beyond
    1e-4 of its norm the block ends in KernelDisagrees. Where rounding is coarser, 2 eps of it are allowed: 1.6 % for
    an output in bfloat16, 0.2 % where the kernel or torch multiplies float32 in TF32, as fused kernels on a GPU do.

    A row says nothing of tokens that were read before the block began: of such texts no row is measured, and what the
    state held then only enters the comparison. Of texts that go on from pass to pass, or token by token, the keys,
    write strengths and decays of the tokens before are carried along: for each layer and token the channels of its key
    heads in the model's type, and 12 bytes a head.

    layers, heads, every, queries, block  as in `MapProbe`; heads are value heads
    without_removal  say too how far the output is off that is made of weights with decay alone, M_i = alpha_i: what a
                     reading of DeltaNet as a sum of decayed writes would give. It makes each row twice. A state that a
                     pass began with is taken as it is, so read whole texts in one pass for this
    """

    name = "implicit_attention"
    reads = "a DeltaNet mixer"

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

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The DeltaNet layers."""
        return decoder.layers_of(DELTANET)

    def start(self, decoder: Decoder) -> None:
        """Empty everything."""
        super().start(decoder)
        self._tolerance, self._products = RECONSTRUCTION, IEEE
        self._indices: dict[torch.device, MeasuredHeads] = {}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the delta rule; the output gate where rows are kept."""
        return (("mixer", "rule"), *([("mixer", "gate")] if self.queries is not None else ()))

    def count_heads(self, layer: int) -> int:
        """Value heads."""
        return int(self.decoder.part(layer, "mixer").num_v_heads)

    def checked(self) -> tuple[str, ...]:
        """The reconstruction."""
        return tuple(self._compared())

    def weighing(self, layer: int, notes: Captured, reading: TokenBatch) -> DeltaNetMapRows:
        """The weights of one layer, with the tokens of the calls before."""
        call, gate = notes["rule"], notes.get("gate")
        assert isinstance(call, DeltaRuleCall)
        assert call.out is not None
        assert gate is None or isinstance(gate, torch.Tensor)
        if call.device not in self._indices:
            where = call.device.type
            self._products = max(self._products, product_eps(kernel_on(where, self.decoder.family), where))
            self._indices[call.device] = MeasuredHeads.of(
                self.heads, call.value.shape[2] // call.key.shape[2], call.device
            )
        self._tolerance = max(self._tolerance, 2 * torch.finfo(call.out.dtype).eps, 2 * self._products)
        heads, name = self._indices[call.device], (id(self), layer)
        earlier: EarlierTokens | None = reading.carry.get(name)
        if earlier is not None and earlier.begin + earlier.columns != reading.past:
            earlier = None  # cropped: what was read before is forgotten
        now = EarlierTokens.of(call, heads, reading)
        kept = reading.carry[name] = now if earlier is None else earlier.and_then(now)
        self._begun_before = kept.begin > 0
        return DeltaNetMapRows(call, kept, heads, kept.columns - now.columns, gate, self.without_removal)

    def check(self) -> None:
        """Raise KernelDisagrees where the weights do not make the kernel's output."""
        gap, out = (self._further.total(name) for name in _CHECKED)
        error = (gap / out.clip(torch.finfo(torch.float32).tiny)) ** 0.5
        worst = error.max(initial=0)
        if not worst <= self._tolerance:
            place, head = divmod(int(error.argmax()), len(self.heads))
            raise KernelDisagrees(
                f"The output that the weights of ImplicitAttention() make is not the one that the kernel returned: "
                f"they differ by {worst:.3g} of its norm in layer {self.layers[place]}, head {self.heads[head]} "
                f"(at most {self._tolerance:.3g} is rounding), and in {int((~(error <= self._tolerance)).sum())} of "
                f"{error.size} heads.\n"
                "The kernel in use follows another convention, or an edit changed what it computes: "
                "watch with transformers' own kernel, which models on the CPU use, without the edit."
                + (_PRECISER if IEEE < self._products >= self._tolerance / 2 else "")
            )

    def more_variables(self, labels: int) -> dict[str, Variable]:
        """The reconstruction, by head."""
        dims = ("label", "fold", "layer", "head")
        return {
            f"{name}_sum": (dims, self._further.array(name, labels, len(self.heads)), "1", what)
            for name, what in self._compared().items()
        }

    def _compared(self) -> dict[str, str]:
        return _CHECKED | (_WITHOUT if self.without_removal else {})
