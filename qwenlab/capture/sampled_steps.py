"""Which decode steps have a token that probes sample, so that the others need no capture."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.tokens import drawn


class SampledSteps:
    """The decode steps at which a token of some sequence is sampled.

    every  the `every` of each probe that reads values at sampled tokens only
    """

    def __init__(self, every: Iterable[int]) -> None:
        self._every = sorted(set(every))

    def has(self, step: ForwardPass) -> bool:
        """Return whether a token of this step may be sampled; the host knows, without a look at the device.

        Where a mask gives the rows different positions, every step may be.
        """
        if step.keys is not None:
            return True
        past = step.past
        return any(drawn(past // every, every, n) == past for every in self._every for n in step.sequences.numbers)

    def kept(self, steps: list[ForwardPass]) -> torch.Tensor:
        """Return int [step]: index of each of consecutive steps among those that were captured: the first, and sampled.

        It is computed on the device, which a copy from the host would stop.
        """
        first = steps[0]
        past = first.past + torch.arange(len(steps), device=first.device)
        number = torch.arange(first.sequences.numbers.start, first.sequences.numbers.stop, device=first.device)
        captured = past == first.past
        for every in self._every:
            captured = captured | (drawn(past // every, every, number[:, None]) == past).any(dim=0)
        return captured.cumsum(0) - 1
