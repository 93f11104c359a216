"""The probe of what low precision does to the states of DeltaNet heads, token after token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.rounding import FORMATS, check_format, rounded
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import At, BinnedSums, counted
from qwenlab.probes.base import Reduced, Variable
from qwenlab.probes.states.base import OCTAVES, POSITION_EDGES, StateProbe, StateSample


class StatePrecision(StateProbe):
    """How far the state of a DeltaNet head strays from that in float32, where it is kept in low precision.

    The delta rule is run again beside the model, token by token in float32, from what the kernel was given, once for
    each format: every `after` tokens of a sequence the state is rounded to the format and read back
    (`precision.rounded`), and the errors that makes go on into later states. The model is not changed; its own states
    are those without rounding. Kept, by octave of the token's position in its sequence, as sums over sampled tokens:
    the error ||S' - S|| / ||S|| (Frobenius; of tokens with an empty state 0), S' being the rounded one.

    A state that was there when the block began, or that was cropped, starts without an error. It costs several times
    what the layer does: an instrument for a text, not for a training run.

    layers, heads, every  as in `StateProbe`
    formats               names in `precision.FORMATS`
    after                 round after so many tokens: 1 as in a decode that keeps the state in this format
    """

    name = "state_precision"

    def __init__(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        every: int = 16,
        formats: Iterable[str] = FORMATS,
        after: int = 1,
    ) -> None:
        super().__init__(layers=layers, heads=heads, every=every)
        self.formats, self.after = tuple(dict.fromkeys(formats)), after
        for format in self.formats:
            check_format(format, "StatePrecision(formats=...)")
        if not self.formats or not isinstance(after, int) or isinstance(after, bool) or after < 1:
            raise BadArgument(
                f"StatePrecision(formats={self.formats}, after={after!r}): "
                "give one format at least, and a whole number of tokens, 1 or more."
            )

    def start(self, decoder: Decoder) -> None:
        """Empty the sums."""
        super().start(decoder)
        self._sums = BinnedSums(len(self.layers), OCTAVES)

    def sample(self) -> dict[str, Any]:
        """Layers, heads and tokens, where not all of them are measured; and how often states are rounded."""
        return super().sample() | {"after": self.after}

    def keep(self, layer: int, part: Part, notes: Captured, reading: TokenBatch) -> Reduced | None:
        """Errors after the chosen tokens, [token, format x head]."""
        call, name = notes["rule"], (id(self), layer)
        assert isinstance(call, DeltaRuleCall)
        which, chosen = self._which(call.device), self._asked(reading)
        given = call.of_heads(which, reading)
        plain = given[1].new_zeros(reading.batch, len(self.heads), given[0].shape[-1], given[1].shape[-1])
        if call.entering is not None:
            plain = call.entering.index_select(1, which).float()
        columns, strayed = reading.carry.get(name, (-1, None))
        if columns != reading.past:  # new, or cropped
            strayed = plain.expand(len(self.formats), *plain.shape)
        states = torch.cat([plain[None], strayed])  # [1 + format, batch, head, key channel, channel]
        states, errors = self._replay(states, given, reading, chosen)
        reading.carry[name] = (reading.past + reading.width, states[1:])
        if call.leaving is not None and reading.whole:
            self._gap.note(layer, states[0], call.leaving.index_select(1, which))
        return {"error": errors} if len(chosen) else None

    def _replay(
        self, states: torch.Tensor, given: tuple[torch.Tensor, ...], reading: TokenBatch, chosen: StateSample
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The delta rule token by token: the last states, and errors [token, format x head] after the chosen ones."""
        key, value, g, beta = (each.float().transpose(0, 1) for each in given)  # [position, batch, head, ...]
        decay, strength = g.exp()[..., None, None], beta[..., None]
        due, some = reading.once((StatePrecision, self.after), lambda: _due(reading, self.after))
        measured = set(chosen.column.tolist())
        errors = []
        for column in range(reading.width):
            states = decay[column] * states
            found = (key[column][..., None, :] @ states)[..., 0, :]
            states = states + key[column][..., None] * (strength[column] * (value[column] - found))[..., None, :]
            if some[column]:
                low = [rounded(state, format) for state, format in zip(states[1:], self.formats, strict=True)]
                states = torch.where(due[:, column, None, None, None], torch.stack([states[0], *low]), states)
            if column in measured:
                off, size = (
                    torch.linalg.vector_norm(each, dim=(-2, -1)) for each in (states[1:] - states[0], states[0])
                )
                errors.append(off / size.clamp_min(torch.finfo(torch.float32).tiny))
        if not errors:
            return states, states.new_zeros(0)
        place = torch.tensor(np.searchsorted(sorted(measured), chosen.column.cpu().numpy()), device=states.device)
        return states, torch.stack(errors)[place, :, chosen.row].flatten(1)

    def _asked(self, reading: TokenBatch) -> StateSample:
        return reading.once((StateSample, self.every, None), lambda: StateSample.of(reading, self.every, None))

    def look(self, where: At, part: Part, kept: Reduced, reading: TokenBatch) -> None:
        """Add up by octave of position."""
        chosen, error = self._asked(reading), kept["error"]
        ones = torch.ones_like(error)
        self._sums.add(where, reading.groups, chosen.group, chosen.octave[:, None], error=error, tokens=ones)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Sums by label, fold, layer, format, head and octave of position."""
        grouped, shape = ("label", "fold", "layer"), (len(self.formats), len(self.heads))

        def of(name: str) -> np.ndarray:
            found = self._sums.array(name, len(labels), shape[0] * shape[1])
            return found.reshape(*found.shape[:3], *shape, OCTAVES)

        what = "distance of the state from that in float32, over its norm, summed over tokens"
        variables: dict[str, Variable] = {
            "error_sum": ((*grouped, "format", "head", "position_bin"), of("error"), "1", what),
            "tokens": ((*grouped, "position_bin"), counted(of("tokens")[:, :, :, 0, 0]), "token", "tokens measured"),
        }
        edges = ("position_bin", POSITION_EDGES, {"units": "token", "long_name": "lower edge"})
        formats = ("format", np.array(self.formats, dtype=object))
        coords = {"position_bin": edges, "head": ("head", np.array(self.heads)), "format": formats}
        return self._dataset(labels, variables, **coords).assign_attrs(self._gap.attrs)


def _due(reading: TokenBatch, after: int) -> tuple[torch.Tensor, list[bool]]:
    """bool [batch, position]: tokens after which a state is rounded; and whether there is one in each column."""
    due = reading.real & ((reading.position + 1) % after == 0)
    return due, due.any(dim=0).tolist()
