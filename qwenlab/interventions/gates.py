"""Edits of gates: the value of a decay, a write strength or an output gate, set or scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.families import DELTANET
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import BadArgument
from qwenlab.interventions.base import ValueIntervention
from qwenlab.interventions.module_sites import InterventionPoints

SHUT = 1e4
"""Size of the largest logit that is given to a sigmoid: beyond about 100 it is 0 or 1 to the last digit."""

LOWEST = -1.2784645427610738
"""Where x sigmoid(x) is least."""


@dataclass(frozen=True)
class SetGate(ValueIntervention):
    """A gate set to a value, or to a multiple of its own.

    pattern, kind, heads, positions, cache  as in `ValueIntervention`; the sites are gates:
        mixer.decay  alpha, in (0, 1]
        mixer.beta   write strength, in [0, 1]
        mixer.gate   what the output is multiplied by: of attention sigmoid(gate), in [0, 1]; of DeltaNet silu(gate),
                     which can be set to 0 or more
    to     the value
    scale  the factor, 0 or more; what would leave the gate's range stops at its end (alpha of 0: `LEAST_DECAY`)

    An output gate is changed before its sigmoid or silu, in the model's type. silu falls before it rises, to -0.28 at
    -1.28: a scaled gate stays on its side of that.
    """

    to: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Raises BadArgument unless there is one value or one factor, and it changes something."""
        super().__post_init__()
        if (self.to is None) == (self.scale is None):
            raise BadArgument(f"{self}: give one of to=... (the gate's value) and scale=... (a factor).")
        if self.to is not None and not math.isfinite(self.to):
            raise BadArgument(f"{self}: a gate cannot be set to that.")
        if self.scale is not None and not (0 <= self.scale < math.inf and self.scale != 1):
            raise BadArgument(f"{self}: a factor is finite, 0 or more, and not 1, which changes nothing.")

    def prepare(self, site: Site, places: InterventionPoints) -> str:
        """What the gate is. Raises BadArgument for another site, and for a value that the gate cannot have."""
        word = site.word.removeprefix("mixer.")
        if word not in ("decay", "beta", "gate"):
            raise BadArgument(
                f"{self}: {site.name} is no gate.\nName mixer.decay, mixer.beta or mixer.gate; for other values there "
                "are zero, scale and patch."
            )
        what = word if word != "gate" else "silu" if site.kind == DELTANET else "sigmoid"
        if self.to is not None:
            above = self.to > 0 if what == "decay" else self.to >= 0
            if not above or (what != "silu" and self.to > 1):
                ranges = {"decay": "(0, 1]", "silu": "[0, inf)"}
                raise BadArgument(f"{self}: {site.name} has values in {ranges.get(what, '[0, 1]')}.")
        return what

    def new(self, value: torch.Tensor, prepared: str, reading: TokenBatch) -> torch.Tensor:
        """The new gate; of an output gate, what its sigmoid or silu is taken of."""
        wide, factor = value.double(), 1.0 if self.scale is None else self.scale
        if prepared in ("decay", "beta"):
            return torch.full_like(value, self.to) if self.to is not None else (wide * factor).clamp_max(1).to(value)
        of, inverse = (_silu, inverse_silu) if prepared == "silu" else (torch.sigmoid, _logit)
        if self.to is not None:
            wanted = torch.tensor(self.to, dtype=torch.float64)
            return inverse(wanted, torch.ones_like(wanted)).to(value).expand_as(value)
        return inverse(of(wide) * factor, wide)


def inverse_silu(wanted: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """x with x sigmoid(x) = wanted, float64, on the side of the lowest point where `side` is; below that point, it.

    By bisection: x lies in [-1.28, wanted + 0.28] on the right. A last step of Newton's gives it its derivative.
    """
    left = side < LOWEST
    goal = wanted.detach()
    low = torch.where(left, -750.0, LOWEST)
    high = torch.where(left, LOWEST, goal.clamp_min(0) + 0.3)
    for _ in range(64):
        middle = (low + high) / 2
        above = (_silu(middle) > goal) ^ left
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    root = (low + high) / 2
    open_ = torch.sigmoid(root)
    slope = open_ * (1 + root * (1 - open_))
    return torch.where(slope.abs() > 1e-6, root + (wanted - _silu(root)) / slope, root)


def _logit(wanted: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """x with sigmoid(x) = wanted; beyond its range, shut or open."""
    inside = (wanted > 0) & (wanted < 1)
    logit = torch.logit(torch.where(inside, wanted, 0.5))
    return torch.where(inside, logit, torch.where(wanted > 0, SHUT, -SHUT))


def _silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)
