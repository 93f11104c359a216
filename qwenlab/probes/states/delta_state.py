"""Probe of the recurrent state of DeltaNet heads: its norm, its rank, and how fast it is rewritten."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import counted
from qwenlab.probes.base import GROUPED, Reduced
from qwenlab.probes.states.base import StateProbe, StateUpdate
from qwenlab.record.states_file import StatesFile

_PER_HEAD = {
    "norm": ("1", "Frobenius norm of the state, summed over tokens"),
    "effective_rank": ("1", "effective rank of the state, summed over tokens"),
    "stable_rank": ("1", "stable rank of the state, summed over tokens"),
    "largest": ("1", "largest singular value of the state, summed over tokens"),
    "rewrite": ("1", "change of the state by a token over its norm before, summed over tokens"),
}


class DeltaState(StateProbe):
    """The recurrent state S [key channel, channel] of every DeltaNet head after chosen tokens, reduced as it arrives.

    Summed per layer and head, by octave of the token's position in its sequence (0, 1, 2-3, 4-7, ...):

    norm            Frobenius norm of S
    effective_rank  exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007, "The
                    effective rank: a measure of effective dimensionality", EUSIPCO): r where r of them are equal and
                    the others 0
    stable_rank     ||S||_F^2 / ||S||_2^2 (Rudelson & Vershynin 2007): at most the rank, and insensitive to small
                    singular values
    largest         largest singular value ||S||_2
    rewrite         change of the state by the token, ||S_t - S_(t-1)|| / ||S_(t-1)||: decay and writing together;
                    without tokens that met an empty state (`rewrites` counts the others)

    The ranks of an empty state are 0. The states do not depend on batching: prefill, token by token, or any pieces.

    layers, heads, every  as in `StateProbe`
    steps   instead of `every`: measure the states after the tokens at these positions of each sequence
    to      also write each of these states, whole and in float32, to this NetCDF file as it arrives, without holding
            it in memory. `xarray.open_dataset(to)`: `state` [token, layer, head, key_channel, channel], with the
            sequence, position and label of each token. The file appears once the block has ended without an error.

    Singular values are by far the most expensive: on a CPU about 0.1 ms per head of 32 channels, 1.5 ms for 128.
    """

    name = "deltastate"
    measured = _PER_HEAD
    settings = ("steps",)

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int | None = None,
        steps: Iterable[int] | None = None,
        to: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=64 if every is None else every)
        self.steps = None if steps is None else sorted(set(steps))
        if self.steps is not None:
            positions = all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in self.steps)
            if every is not None or not self.steps or not positions:
                raise BadArgument(
                    f"DeltaState(every={every!r}, steps={self.steps}): give only one of them; steps are positions of "
                    "tokens in their sequences, 0 or more."
                )
            self.every = 1
        self.to = to
        self._file: StatesFile | None = None
        self._row = 0  # in the file, of the first state after the tokens that are being reduced

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        if self.to is not None:
            shape = decoder.family.deltanet.state_shape(decoder.module.config)
            kinds = [decoder.layer_types[layer] for layer in self.layers]
            self._file = StatesFile(self.to, self.layers, kinds, self.heads, shape)

    def on_tokens(self, tokens: TokenBatch) -> None:
        if self._file is not None:
            chosen, numbers = self._chosen(tokens), np.array(tokens.numbers)
            label = (tokens.row[chosen.row, chosen.column] - 1).cpu().numpy()
            rows = numbers[chosen.row.cpu().numpy()], chosen.position.cpu().numpy(), label
            tokens.carry[id(self), "row"] = self._file.extend(*rows)

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        self._row = tokens.carry.get((id(self), "row"), 0)
        return super().reduce(layer, part, captured, tokens)

    def measure(self, layer: int, update: StateUpdate) -> Reduced:
        """Return statistics of the states; write them to the file."""
        state = update.after
        if self._file is not None:
            self._file.write(self.layers.index(layer), self._row + update.which.start, state.cpu().numpy())
        return statistics(state) | _rewrite(update.before, update.change)

    def end(self, whole: bool) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close(self.session.facts() | {"probe": "DeltaState"} if whole else None)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        rewrites = counted(self._sums.array("rewrites", len(labels), len(self.heads)))
        about = {"units": "token", "long_name": "tokens that met a state that was not empty"}
        data = super().dataset(labels).assign(rewrites=((*GROUPED, "head", "position_bin"), rewrites, about))
        return data.assign_attrs(full_rank=min(self.decoder.family.deltanet.state_shape(self.decoder.module.config)))


def statistics(state: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return norm, ranks and largest singular value of states [..., key channel, channel], each [...]; 0 if empty.

    They come from the eigenvalues of S^T S (of the smaller side) in float64, which are the squared singular values.
    Singular values below 1e-8 of the largest are lost; in a float32 state those are rounding noise anyway.
    """
    state = state.double()
    state = state if state.shape[-1] <= state.shape[-2] else state.transpose(-1, -2)
    square = torch.linalg.eigvalsh(state.transpose(-1, -2) @ state).clamp_min(0)
    singular, tiny = square.sqrt(), torch.finfo(torch.float64).tiny
    share = singular / singular.sum(dim=-1, keepdim=True).clamp_min(tiny)
    energy, largest = square.sum(dim=-1), singular[..., -1]
    entropy = -torch.special.xlogy(share, share).sum(dim=-1)
    return {
        "norm": energy.sqrt(),
        "effective_rank": torch.where(energy > 0, entropy.exp(), 0),
        "stable_rank": energy / square[..., -1].clamp_min(tiny),
        "largest": largest,
    }


def _rewrite(before: torch.Tensor, change: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the norm of the change over that of the state before, 0 if that was empty; and 1 if it was not empty."""
    old, new = (torch.linalg.vector_norm(each, dim=(-2, -1), dtype=torch.float64) for each in (before, change))
    full = old > 0
    return {"rewrite": torch.where(full, new / torch.where(full, old, 1), 0), "rewrites": full.double()}
