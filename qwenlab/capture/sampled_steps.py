"""Which token of a block is sampled, and which decode steps have one, so that the others need no capture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from qwenlab.capture.forward_pass import ForwardPass


class SampledSteps:
    """The decode steps at which a token of some sequence is sampled.

    every  the `every` of each probe that reads values at sampled tokens only
    """

    def __init__(self, every: Iterable[int]) -> None:
        self.every = tuple(sorted(set(every)))

    def has(self, step: ForwardPass) -> bool:
        """Return whether a token of this step may be sampled; the host knows, without a look at the device.

        Where a mask gives the rows different positions, every step may be.
        """
        if step.keys is not None:
            return True
        past = step.past
        return any(drawn(past // every, every, n) == past for every in self.every for n in step.sequences.numbers)

    def kept(self, steps: list[ForwardPass]) -> torch.Tensor:
        """Return int [step]: index of each of consecutive steps among those that were captured: the first, and sampled.

        It is computed on the device, which a copy from the host would stop.
        """
        first = steps[0]
        past = first.past + torch.arange(len(steps), device=first.device)
        number = torch.arange(first.sequences.numbers.start, first.sequences.numbers.stop, device=first.device)
        captured = past == first.past
        for every in self.every:
            captured = captured | (drawn(past // every, every, number[:, None]) == past).any(dim=0)
        return captured.cumsum(0) - 1


def drawn(block: Any, every: int, sequence: Any = 0) -> Any:
    """Return the position of the token sampled from the block [every * block, every * (block + 1)) of a sequence.

    A fixed place, such as the first, would meet a text of that period in one phase only, and only the beginning of
    short texts. So the place starts in the middle of the block and moves from block to block by the golden ratio, as
    evenly as possible (Knuth, TAOCP 3, section 6.4), and from sequence to sequence by the square root of two.
    """
    place = (2**31 + block * 2654435769 + sequence * 1779033703) % 2**32
    return every * block + (place * every >> 32)
