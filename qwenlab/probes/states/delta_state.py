"""The probe of the recurrent state of DeltaNet heads: how large it is, of what rank, and how fast it is rewritten."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import At, BinnedSums, counted
from qwenlab.probes.base import Reduced, Variable
from qwenlab.probes.states.base import OCTAVES, POSITION_EDGES, StateProbe, StateSample, moments
from qwenlab.record.states_file import StatesFile

_PER_HEAD = {
    "norm": "Frobenius norm of the state, summed over tokens",
    "effective_rank": "effective rank of the state, summed over tokens",
    "stable_rank": "stable rank of the state, summed over tokens",
    "largest": "largest singular value of the state, summed over tokens",
    "rewrite": "change of the state by a token over its norm before, summed over tokens",
}


class DeltaState(StateProbe):
    """The recurrent state S [key channel, channel] of every DeltaNet head after chosen tokens, reduced as it comes.

    Kept, per layer and head, by octave of the token's position in its sequence (0, 1, 2-3, 4-7, ...), as sums:

    norm            Frobenius norm of S
    effective_rank  exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007, "The
                    effective rank: a measure of effective dimensionality", EUSIPCO): r where r of them are equal and
                    the others 0
    stable_rank     ||S||_F^2 / ||S||_2^2 (Rudelson & Vershynin 2007): at most the rank, and little moved by small
                    singular values
    largest         largest singular value ||S||_2
    rewrite         what the token did to the state, ||S_t - S_(t-1)|| / ||S_(t-1)||: decay and writing together; not
                    of tokens that met an empty state (`rewrites` counts the others)

    An empty state has the ranks 0. The same tokens give the same states however they are read: in prefill, token by
    token, or in any pieces.

    layers  only these layers
    heads   only these value heads of each layer
    every   the state after one token of every so many (`reading.drawn` says which); 1: after all
    steps   in place of `every`: the states after the tokens at these positions of each sequence
    to      also write each of these states, whole and in float32, to this NetCDF file as it comes; none is held in
            memory. `xarray.open_dataset(to)`: `state` [token, layer, head, key_channel, channel], with the sequence,
            position and label of each. The file is there once the block has ended well.

    Singular values cost the most by far: on a CPU about 0.1 ms a head of 32 channels, 1.5 ms one of 128.
    """

    name = "deltastate"

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
            whole = all(isinstance(step, int) and not isinstance(step, bool) and step >= 0 for step in self.steps)
            if every is not None or not self.steps or not whole:
                raise BadArgument(
                    f"DeltaState(every={every!r}, steps={self.steps}): give one of them, and as steps positions of "
                    "tokens in their sequences, 0 or more."
                )
            self.every = 1
        self.to = to
        self._file: StatesFile | None = None

    def start(self, decoder: Decoder) -> None:
        """Empty the sums, and begin the file."""
        super().start(decoder)
        self._sums = BinnedSums(len(self.layers), OCTAVES)
        if self.to is not None:
            mixer = decoder.part(self.layers[0], "mixer")
            kinds = [decoder.layer_types[layer] for layer in self.layers]
            self._file = StatesFile(self.to, self.layers, kinds, self.heads, (mixer.head_k_dim, mixer.head_v_dim))

    def sample(self) -> dict[str, Any]:
        """Layers, heads and tokens, where not all of them are measured."""
        return super().sample() | ({} if self.steps is None else {"steps": self.steps})

    def look_at_tokens(self, reading: TokenBatch) -> None:
        """Make room in the file for the states of these tokens."""
        if self._file is not None:
            chosen, numbers = self._asked(reading), np.array(reading.numbers)
            label = (reading.row[chosen.row, chosen.column] - 1).cpu().numpy()
            self._file.extend(numbers[chosen.row.cpu().numpy()], chosen.position.cpu().numpy(), label)

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced | None:
        """Statistics of the states after the chosen tokens, [token, head]; the states themselves go to the file."""
        call, chosen = notes["rule"], self._asked(reading)
        assert isinstance(call, DeltaRuleCall)
        found: list[Reduced] = []
        for number, chunk in enumerate(self._walk(layer, call, reading)):
            for moment in moments(chunk, number, chosen, len(self.heads)):
                state = moment.after
                if self._file is not None:
                    self._file.write(self.layers.index(layer), moment.which, state.cpu().numpy())
                found.append(statistics(state) | _rewrite(moment.before, moment.change))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]} if found else None

    def _asked(self, reading: TokenBatch) -> StateSample:
        steps = None if self.steps is None else tuple(self.steps)
        return reading.once((StateSample, self.every, steps), lambda: StateSample.of(reading, self.every, steps))

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up by octave of position."""
        chosen = self._asked(reading)
        tokens = torch.ones_like(kept["norm"])
        self._sums.add(where, reading.groups, chosen.group, chosen.octave[:, None], tokens=tokens, **kept)

    def end(self, whole: bool) -> None:
        """The file is put in its place, or dropped."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close(self.watch.facts() | {"probe": "DeltaState"} if whole else None)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer, head and octave of position."""
        dims = ("label", "fold", "layer", "head", "position_bin")

        def of(name: str) -> np.ndarray:
            return self._sums.array(name, len(labels), len(self.heads))

        variables: dict[str, Variable] = {
            f"{name}_sum": (dims, of(name), "1", what) for name, what in _PER_HEAD.items()
        }
        variables["rewrites"] = (dims, counted(of("rewrites")), "token", "tokens that met a state that was not empty")
        by_layer = tuple(dim for dim in dims if dim != "head")
        variables["tokens"] = (
            by_layer,
            counted(of("tokens")[:, :, :, 0]),
            "token",
            "tokens after which it was measured",
        )
        edges = ("position_bin", POSITION_EDGES, {"units": "token", "long_name": "lower edge"})
        coords = {"position_bin": edges, "head": ("head", np.array(self.heads))}
        mixer = self.decoder.part(self.layers[0], "mixer")
        full = min(mixer.head_k_dim, mixer.head_v_dim)
        return self._dataset(labels, variables, **coords).assign_attrs(full_rank=full, **self._gap.attrs)


def statistics(state: torch.Tensor) -> dict[str, torch.Tensor]:
    """Norm, ranks and largest singular value of states [..., key channel, channel], each [...]; 0 where one is empty.

    From the eigenvalues of S^T S (of the smaller side) in float64, which are the squares of the singular values: those
    below 1e-8 of the largest are lost, which says nothing of a state in float32.
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
    """The change over the state before, 0 where that was empty; and 1 where it was not."""
    was, did = (torch.linalg.vector_norm(each, dim=(-2, -1), dtype=torch.float64) for each in (before, change))
    met = was > 0
    return {"rewrite": torch.where(met, did / torch.where(met, was, 1), 0), "rewrites": met.double()}
