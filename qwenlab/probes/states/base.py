"""Base class for state probes: recompute the states of DeltaNet heads after chosen tokens, independent of batching."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.prediction import CHUNK, Chunk, chunks
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import BinnedSums, LayerSlice, counted
from qwenlab.probes.base import GROUPED, HeadProbe, Reduced, Variable, summed
from qwenlab.probes.bins import OCTAVES, octave_of
from qwenlab.probes.kernel_agreement import StateDeviation

MAX_STATE_ELEMENTS = 2**22
"""Elements of states in memory at a time (but always at least those of one token)."""


@dataclass(frozen=True)
class StateSample:
    """The tokens of a batch whose states are measured, ordered by chunk, then by row and column."""

    row: torch.Tensor  # int [token]: row and column in the batch
    column: torch.Tensor
    position: torch.Tensor  # int [token]: position in the sequence
    group: torch.Tensor  # int [token]: label and fold
    sections: tuple[int, ...]  # number of these tokens in each chunk

    @staticmethod
    def of(
        tokens: TokenBatch, every: int, steps: Sequence[int] | None = None, ids: tuple[int, ...] | None = None
    ) -> StateSample:
        """Return the tokens at these positions, or one per block of `every`, with one of these ids; a device sync."""
        if steps is None:
            sample = tokens.sample(every)
            chosen = torch.zeros_like(tokens.position).scatter_add_(1, sample.columns, sample.tokens.real.long()) > 0
        else:
            chosen = tokens.real & torch.isin(tokens.position, torch.tensor(steps, device=tokens.position.device))
        if ids is not None:
            if tokens.ids is None:
                raise BadArgument(
                    "Tokens are chosen by their ids, but the model got inputs_embeds, which have no ids.\n"
                    "Call it with input_ids, or choose by position alone."
                )
            chosen &= torch.isin(tokens.ids, torch.tensor(ids, device=chosen.device))
        row, column = chosen.nonzero(as_tuple=True)
        width = min(CHUNK, tokens.width)
        order = torch.argsort(column // width, stable=True)
        row, column = row[order], column[order]
        counts = torch.bincount(column // width, minlength=-(-tokens.width // width))
        position, group = tokens.position[row, column], tokens.group[row, column]
        return StateSample(row, column, position, group, tuple(counts.tolist()))

    def __len__(self) -> int:
        return len(self.row)

    def parts(self, chunk: int, most: int) -> Iterator[slice]:
        """Iterate over the indices of the tokens in a chunk, at most `most` at a time."""
        begin = sum(self.sections[:chunk])
        end = begin + self.sections[chunk]
        return (slice(start, min(start + most, end)) for start in range(begin, end, most))

    @property
    def octave(self) -> torch.Tensor:
        """int [token]: bin of the position."""
        return octave_of(self.position)


@dataclass(frozen=True)
class StateUpdate:
    """The updates of the state by some tokens, each [token, head, key channel, channel]."""

    which: slice  # indices of those tokens among the chosen ones
    before: torch.Tensor
    change: torch.Tensor

    @property
    def after(self) -> torch.Tensor:
        """The state after the token."""
        return self.before + self.change


def state_updates(chunk: Chunk, number: int, chosen: StateSample, heads: int) -> Iterator[StateUpdate]:
    """Iterate over the state updates by the chosen tokens of the `number`-th chunk, within MAX_STATE_ELEMENTS.

    With S0 the state before the chunk, G the running sum of g and u_s the vector that token s writes, the state before
    t is

        exp(G_(t-1)) S0 + sum over s < t of exp(G_(t-1) - G_s) k_s u_s^T,

    and t changes it by (alpha_t - 1) S + k_t u_t^T. The change is computed in this form because a difference of two
    states would lose small changes.
    """
    width, *size = chunk.key.shape[1], *chunk.before.shape[1:]
    key, written, g, elapsed, start = (
        each.unflatten(0, (-1, heads)) for each in (chunk.key, chunk.written, chunk.g, chunk.elapsed, chunk.before)
    )
    elapsed_before = torch.nn.functional.pad(elapsed[..., 0], (1, 0))[..., :-1]
    within = torch.arange(width, device=key.device)
    for which in chosen.parts(number, max(1, MAX_STATE_ELEMENTS // (heads * size[0] * size[1]))):
        row, at = chosen.row[which], chosen.column[which] - number * width
        since = elapsed_before[row, :, at]  # [token, head]
        decay = (since[..., None] - elapsed[row, ..., 0]).masked_fill(within >= at[:, None, None], -torch.inf).exp()
        before = (key[row] * decay[..., None]).transpose(2, 3) @ written[row]
        before = before + since.exp()[..., None, None] * start[row]
        change = torch.expm1(g[row, :, at])[..., None] * before
        change = change + key[row, :, at][..., None] * written[row, :, at][..., None, :]
        yield StateUpdate(which, before, change)


class StateProbe(HeadProbe):
    """Base class for probes of the states of DeltaNet heads, recomputed in float32 from the kernel's arguments.

    A subclass lists what it sums in `measured` and computes it in `measure`; the sums are by octave of the token's
    position in its sequence.

    In prefill a kernel returns the last state only, so those in between are solved for (`prediction.chunks`). After
    every pass without padding that is not a decode step, the final state is checked against the kernel's: attr
    `state_gap` is their largest distance, relative to the kernel's state, and beyond 5 % the block raises
    KernelMismatch.

    layers  only these layers
    heads   only these value heads of each layer
    every   measure the state after one token per block of this many (chosen by `sampled_steps.drawn`); 1: after all
    """

    kind = DELTANET
    measured: ClassVar[dict[str, tuple[str, str]]] = {}  # by name: units, and meaning of the sum over tokens
    steps: list[int] | None = None  # positions after which states are measured, instead of `every`

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self._sums = BinnedSums(len(self.layers), OCTAVES)
        self._deviation = StateDeviation()
        self._indices: dict[torch.device, torch.Tensor] = {}

    def sites(self, layer: int) -> Iterable[str]:
        return ("mixer.rule", "mixer.state")

    def state_heads(self, layer: int) -> Iterable[int]:
        return self.heads

    def measure(self, layer: int, update: StateUpdate) -> Reduced:
        """Return values [token, head] of some tokens, from their states [token, head, key channel, channel]."""
        raise NotImplementedError(f"{type(self).__name__} reads states and does not implement measure")

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        """Measure the states after the chosen tokens."""
        call, chosen = captured["mixer.rule"], self._chosen(tokens)
        assert isinstance(call, DeltaRuleCall)
        values = [
            self.measure(layer, update)
            for number, chunk in enumerate(self._chunks(layer, call, tokens))
            for update in state_updates(chunk, number, chosen, len(self.heads))
        ]
        return {name: torch.cat([each[name] for each in values]) for name in values[0]} if values else None

    def accumulate(self, where: LayerSlice, part: Part, reduced: Reduced, tokens: TokenBatch) -> None:
        """Add up values [layer, token, column] of the chosen tokens, and their number, by octave of position."""
        chosen, ones = self._chosen(tokens), torch.ones_like(next(iter(reduced.values())))
        self._sums.add(where, tokens.groups, chosen.group, chosen.octave[:, None], tokens=ones, **reduced)

    def _chosen(self, tokens: TokenBatch) -> StateSample:
        """Return the tokens after which states are measured."""
        steps = None if self.steps is None else tuple(self.steps)
        return tokens.once((StateSample, self.every, steps), lambda: StateSample.of(tokens, self.every, steps))

    def _chunks(self, layer: int, call: DeltaRuleCall, tokens: TokenBatch) -> Iterator[Chunk]:
        """Iterate over the chunks of one call, for the measured heads; then check the final state.

        The final state is that after the last real token: padding leaves it unchanged.
        """
        heads = self._head_indices(call.device)
        initial, final = call.states(heads)
        for chunk in chunks(*call.updates(heads, tokens), initial):
            yield chunk
        if final is not None and tokens.whole:
            self._deviation.add(layer, chunk.after.unflatten(0, final.shape[:2]), final)

    def _head_indices(self, device: torch.device) -> torch.Tensor:
        """Return int [head]: indices of the measured value heads."""
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.heads, device=device)
        return self._indices[device]

    def check(self) -> None:
        self._deviation.check(type(self).__name__, "watch with transformers' own kernel, without the intervention.")

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Return the sums by label, fold, layer, head and octave of position, and the number of tokens."""

        def of(name: str) -> np.ndarray:
            return self._sums.array(name, len(labels), len(self.heads))

        tokens = counted(of("tokens")[:, :, :, 0])
        variables = summed(self.measured, (*GROUPED, "head", "position_bin"), of) | {
            "tokens": ((*GROUPED, "position_bin"), tokens, "token", "tokens after which it was measured")
        }
        return self.build_dataset(labels, variables)

    def build_dataset(self, labels: list[str], variables: dict[str, Variable], **coords: Any) -> xr.Dataset:
        return super().build_dataset(labels, variables, **coords).assign_attrs(self._deviation.attrs)
