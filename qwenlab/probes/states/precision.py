"""Probe of the error that low precision causes in the states of DeltaNet heads, token by token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from qwenlab.arguments import choice, integer
from qwenlab.capture.buffers import Captured, Part
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.rounding import FORMATS, rounded
from qwenlab.capture.tokens import TokenBatch
from qwenlab.errors import BadArgument
from qwenlab.probes.accumulators import counted
from qwenlab.probes.base import GROUPED, Reduced, Variable
from qwenlab.probes.bins import OCTAVES
from qwenlab.probes.kernel_agreement import relative_distance
from qwenlab.probes.states.base import StateProbe, StateSample


class StatePrecision(StateProbe):
    """Error of the state of a DeltaNet head in low precision, relative to the state in float32.

    The delta rule is replayed token by token in float32, from the kernel's arguments, once per format: every `after`
    tokens of a sequence the state is rounded to the format (`rounding.rounded`), and later states inherit the error.
    The model itself is not changed, and its own states are not rounded. Summed over sampled tokens, by octave of the
    token's position in its sequence: the error ||S' - S|| / ||S|| (Frobenius; 0 for an empty state), with S' the
    rounded state.

    A state from before the block, or one whose cache was cropped, starts without an error. The replay costs several
    times as much as the layer: use it for single texts, not in a training run.

    layers, heads, every  as in `StateProbe`
    formats               names in `rounding.FORMATS`
    after                 round after this many tokens; 1 as in a decode that stores the state in this format
    """

    name = "state_precision"
    settings = ("after",)

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
        self.formats = tuple(dict.fromkeys(formats))
        self.after = integer("StatePrecision", "after", after, least=1, unit="tokens")
        for format in self.formats:
            choice("StatePrecision", "formats", format, FORMATS)
        if not self.formats:
            raise BadArgument("StatePrecision(formats=()): give at least one format.")

    def reduce(self, layer: int, part: Part, captured: Captured, tokens: TokenBatch) -> Reduced | None:
        """Return errors after the chosen tokens, [token, format x head]."""
        call, name = captured["mixer.rule"], (id(self), layer)
        assert isinstance(call, DeltaRuleCall)
        heads, chosen = self._head_indices(call.device), self._chosen(tokens)
        arguments, (initial, final) = call.updates(heads, tokens), call.states(heads)
        exact = arguments[1].new_zeros(tokens.batch, len(self.heads), arguments[0].shape[-1], arguments[1].shape[-1])
        if initial is not None:
            exact = initial.float()
        columns, low = tokens.carry.get(name, (-1, None))
        if columns != tokens.past:  # new, or cropped
            low = exact.expand(len(self.formats), *exact.shape)
        states = torch.cat([exact[None], low])  # [1 + format, batch, head, key channel, channel]
        states, errors = self._replay(states, arguments, tokens, chosen)
        tokens.carry[name] = (tokens.past + tokens.width, states[1:])
        if final is not None and tokens.whole:
            self._deviation.add(layer, states[0], final)
        return {"error": errors} if len(chosen) else None

    def _replay(
        self, states: torch.Tensor, arguments: tuple[torch.Tensor, ...], tokens: TokenBatch, chosen: StateSample
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replay the delta rule; return final states, and errors [token, format x head] after the chosen tokens."""
        key, value, g, beta = (each.float().transpose(0, 1) for each in arguments)  # [position, batch, head, ...]
        decay, strength = g.exp()[..., None, None], beta[..., None]
        due = tokens.real & ((tokens.position + 1) % self.after == 0)
        any_due = due.any(dim=0).tolist()
        measured = set(chosen.column.tolist())
        errors = []
        for column in range(tokens.width):
            states = decay[column] * states
            predicted = (key[column][..., None, :] @ states)[..., 0, :]
            states = states + key[column][..., None] * (strength[column] * (value[column] - predicted))[..., None, :]
            if any_due[column]:
                low = [rounded(state, format) for state, format in zip(states[1:], self.formats, strict=True)]
                states = torch.where(due[:, column, None, None, None], torch.stack([states[0], *low]), states)
            if column in measured:
                errors.append(relative_distance(states[1:], states[0]))
        if not errors:
            return states, states.new_zeros(0)
        place = torch.tensor(np.searchsorted(sorted(measured), chosen.column.cpu().numpy()), device=states.device)
        return states, torch.stack(errors)[place, :, chosen.row].flatten(1)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        shape = (len(self.formats), len(self.heads))

        def of(name: str) -> np.ndarray:
            sums = self._sums.array(name, len(labels), shape[0] * shape[1])
            return sums.reshape(*sums.shape[:3], *shape, OCTAVES)

        meaning = "distance of the state from that in float32, over its norm, summed over tokens"
        variables: dict[str, Variable] = {
            "error_sum": ((*GROUPED, "format", "head", "position_bin"), of("error"), "1", meaning),
            "tokens": ((*GROUPED, "position_bin"), counted(of("tokens")[:, :, :, 0, 0]), "token", "tokens measured"),
        }
        return self.build_dataset(labels, variables, format=("format", np.array(self.formats, dtype=object)))
