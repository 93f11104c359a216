"""The state of DeltaNet heads after chosen tokens, whether these are read in one pass, one by one, or in any pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwenlab.capture.buffers import Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import CHUNK, Chunk, chunks
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.probes.base import Probe
from qwenlab.probes.kernel_agreement import StateDeviation

HELD = 2**22
"""Elements of states, at most, that are worked out at a time (but always those of one token)."""

OCTAVES = 22
POSITION_EDGES = np.concatenate([[0], 2 ** np.arange(OCTAVES - 1)])
"""Lower edges of the bins by octave: 0, 1, 2-3, 4-7, ...; the last takes all from 2^20 on."""


@dataclass(frozen=True)
class StateSample:
    """The tokens of a reading whose state is asked for, chunk by chunk, in each by row and column.

    row, column      int [token]: where they stand in the reading
    position, group  int [token]: in their sequence; their label and fold
    sections         how many of them stand in each chunk
    """

    row: torch.Tensor
    column: torch.Tensor
    position: torch.Tensor
    group: torch.Tensor
    sections: tuple[int, ...]

    @staticmethod
    def of(reading: TokenBatch, every: int, steps: Sequence[int] | None) -> StateSample:
        """The tokens at these positions of their sequences, or one of every so many. Asks the device how many."""
        if steps is None:
            sample = reading.sample(every)
            found = torch.zeros_like(reading.position).scatter_add_(1, sample.columns, sample.reading.real.long()) > 0
        else:
            found = reading.real & torch.isin(reading.position, torch.tensor(steps, device=reading.position.device))
        row, column = found.nonzero(as_tuple=True)
        width = min(CHUNK, reading.width)
        order = torch.argsort(column // width, stable=True)
        row, column = row[order], column[order]
        counts = torch.bincount(column // width, minlength=-(-reading.width // width))
        position, group = reading.position[row, column], reading.group[row, column]
        return StateSample(row, column, position, group, tuple(counts.tolist()))

    def __len__(self) -> int:
        return len(self.row)

    def of_ids(self, reading: TokenBatch, ids: tuple[int, ...] | None) -> StateSample:
        """Those of them that are these tokens, by id; None: all. Raises BadArgument where the model got no ids."""
        if ids is None:
            return self
        if reading.tokens is None:
            raise BadArgument(
                "Tokens are chosen by their ids, and the model was given inputs_embeds, which have none.\n"
                "Call it with input_ids, or choose by position alone."
            )
        keep = torch.isin(reading.tokens[self.row, self.column], torch.tensor(ids, device=self.row.device))
        row, column, position, group = (each[keep] for each in (self.row, self.column, self.position, self.group))
        return StateSample(row, column, position, group, tuple(int(part.sum()) for part in keep.split(self.sections)))

    def parts(self, chunk: int, most: int) -> Iterator[slice]:
        """Which of these tokens stand in a chunk, so many at a time."""
        begin = sum(self.sections[:chunk])
        end = begin + self.sections[chunk]
        return (slice(start, min(start + most, end)) for start in range(begin, end, most))

    @property
    def octave(self) -> torch.Tensor:
        """int [token]: bin of their position."""
        return octave_of(self.position)


def octave_of(number: torch.Tensor) -> torch.Tensor:
    """Bin of whole numbers, or of what they are rounded down from, by octave."""
    _, exponent = torch.frexp(number.double().floor().clamp_min(0))
    return exponent.long().clamp_max(OCTAVES - 1)


@dataclass(frozen=True)
class Moment:
    """The state around some tokens, each [token, head, key channel, channel].

    which   those tokens, among the chosen ones
    before  before the token came;  change  what it did: the state after it is their sum
    """

    which: slice
    before: torch.Tensor
    change: torch.Tensor

    @property
    def after(self) -> torch.Tensor:
        """The state after the token."""
        return self.before + self.change


def moments(chunk: Chunk, number: int, chosen: StateSample, heads: int) -> Iterator[Moment]:
    """The states around the tokens chosen in a chunk, the `number`-th, so many at a time as may be held.

    With S0 the state the chunk begins with, G the running sum of g and u_s what token s writes, the state before t is

        exp(G_(t-1)) S0 + sum over s < t of exp(G_(t-1) - G_s) k_s u_s^T,

    and t changes it by (alpha_t - 1) S + k_t u_t^T: as it is written, so that small changes are no difference of large
    numbers.
    """
    width, *size = chunk.key.shape[1], *chunk.before.shape[1:]
    key, written, g, elapsed, start = (
        each.unflatten(0, (-1, heads)) for each in (chunk.key, chunk.written, chunk.g, chunk.elapsed, chunk.before)
    )
    elapsed_before = torch.nn.functional.pad(elapsed[..., 0], (1, 0))[..., :-1]
    within = torch.arange(width, device=key.device)
    for which in chosen.parts(number, max(1, HELD // (heads * size[0] * size[1]))):
        row, at = chosen.row[which], chosen.column[which] - number * width
        since = elapsed_before[row, :, at]  # [token, head]
        decay = (since[..., None] - elapsed[row, ..., 0]).masked_fill(within >= at[:, None, None], -torch.inf).exp()
        before = (key[row] * decay[..., None]).transpose(2, 3) @ written[row]
        before = before + since.exp()[..., None, None] * start[row]
        change = torch.expm1(g[row, :, at])[..., None] * before
        change = change + key[row, :, at][..., None] * written[row, :, at][..., None, :]
        yield Moment(which, before, change)


class StateProbe(Probe):
    """A probe of the states of DeltaNet heads. They are worked out in float32 from what the kernel was given.

    In prefill a kernel returns the last state only, so those in between are solved for (`prediction.chunks`). After
    every pass without padding that is no decode step, the state so reached is held to the one that the kernel returned:
    attr `state_gap` is their largest distance, relative to the kernel's, and beyond 5 % the block ends in
    KernelDisagrees.

    layers  only these layers
    heads   only these value heads of each layer
    every   the state after one token of every so many (`reading.drawn` says which); 1: after all
    """

    reads = "a DeltaNet mixer"

    def __init__(
        self, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None, every: int = 64
    ) -> None:
        super().__init__(layers=layers, every=every)
        self._chosen_heads = None if heads is None else sorted(set(heads))
        self.heads: list[int] = []

    def able(self, decoder: Decoder) -> tuple[int, ...]:
        """The DeltaNet layers."""
        return decoder.layers_of(DELTANET)

    def start(self, decoder: Decoder) -> None:
        """Choose layers and heads. Raises BadArgument for heads that the layers do not have."""
        super().start(decoder)
        mixer = decoder.part(self.layers[0], "mixer")
        total = mixer.num_v_heads
        self.heads = list(range(total)) if self._chosen_heads is None else self._chosen_heads
        if not self.heads or not set(self.heads) <= set(range(total)):
            raise BadArgument(
                f"{type(self).__name__}(heads={self.heads}): its layers have value heads 0 to {total - 1}.\n"
                "Leave `heads` out to read all of them."
            )
        self._gap = StateDeviation()
        self._indices: dict[torch.device, torch.Tensor] = {}

    def wants(self, layer: int) -> Iterable[tuple[Part, str]]:
        """The call of the delta rule."""
        return (("mixer", "rule"),)

    def sample(self) -> dict[str, Any]:
        """Layers, heads and tokens, where not all of them are measured."""
        return super().sample() | ({} if self._chosen_heads is None else {"heads": self.heads})

    def _walk(self, layer: int, call: DeltaRuleCall, reading: TokenBatch) -> Iterator[Chunk]:
        """The chunks of one call of a layer, of the heads that are read; then the last state is held to the kernel's.

        A state is the one after the last real token: padding is passed over.
        """
        which = self._which(call.device)
        entering, leaving = (
            None if each is None else each.index_select(1, which) for each in (call.entering, call.leaving)
        )
        for chunk in chunks(*call.of_heads(which, reading), entering):
            yield chunk
        if leaving is not None and reading.whole:
            self._gap.note(layer, chunk.after.unflatten(0, leaving.shape[:2]), leaving)

    def _which(self, device: torch.device) -> torch.Tensor:
        """int [head]: the value heads that are read."""
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.heads, device=device)
        return self._indices[device]

    def check(self) -> None:
        """Raise KernelDisagrees where our state and the kernel's are not the same."""
        self._gap.check(type(self).__name__, "watch with transformers' own kernel, without the edit.")
