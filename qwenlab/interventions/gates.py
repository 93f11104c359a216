"""Interventions on gates: set or scale a decay, a write strength or an output gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.families import DELTANET
from qwenlab.checkpoint.sites import Site
from qwenlab.errors import BadArgument
from qwenlab.interventions.base import ValueIntervention
from qwenlab.interventions.points import InterventionPoints

SHUT = 1e4
"""Largest logit passed to a sigmoid: beyond about 100 the result is 0 or 1 to the last digit."""

LOWEST = -1.2784645427610738
"""The x at which silu(x) = x sigmoid(x) is smallest."""


@dataclass(frozen=True)
class SetGate(ValueIntervention):
    """Set a gate to a value, or to a multiple of its own value.

    pattern, kind, heads, positions  as in `ValueIntervention`, also for what layers cache; the sites are gates:
        mixer.decay  alpha, in (0, 1]
        mixer.beta   write strength, in [0, 1], or in [0, 2] where the model allows negative eigenvalues
        mixer.gate   factor of the output: sigmoid(gate) in [0, 1] for attention; silu(gate) for DeltaNet, which can
                     be set to 0 or more
    to     the value
    scale  the factor, 0 or more; results are clipped to the range of the gate (alpha of 0: `LEAST_DECAY`)

    An output gate is changed before its sigmoid or silu, in the model's type. silu falls before it rises, to -0.28 at
    -1.28: a scaled gate stays on its side of that.
    """

    to: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.to is None) == (self.scale is None):
            raise BadArgument(f"{self}: give either to=... (the gate's value) or scale=... (a factor).")
        if self.to is not None and not math.isfinite(self.to):
            raise BadArgument(f"{self}: give a finite value.")
        if self.scale is not None and not (0 <= self.scale < math.inf and self.scale != 1):
            raise BadArgument(f"{self}: give a finite factor, 0 or more; a factor of 1 changes nothing.")

    def prepare(self, site: Site, points: InterventionPoints) -> tuple[str, float]:
        """The function of the gate, "decay", "beta", "silu" or "sigmoid", and its largest value."""
        word = site.word.removeprefix("mixer.")
        if word not in ("decay", "beta", "gate"):
            raise BadArgument(
                f"{self}: {site.name} is not a gate.\nName mixer.decay, mixer.beta or mixer.gate; for other values use "
                "Zero, Scale or Patch."
            )
        function = word if word != "gate" else "silu" if site.kind == DELTANET else "sigmoid"
        strongest = points.decoder.family.deltanet.largest_beta(points.decoder.module.config)
        largest = {"silu": math.inf, "beta": strongest}.get(function, 1)
        if self.to is not None:
            above = self.to > 0 if function == "decay" else self.to >= 0
            if not above or self.to > largest:
                ranges = {"decay": "(0, 1]", "silu": "[0, inf)"}
                raise BadArgument(f"{self}: {site.name} has values in {ranges.get(function, f'[0, {largest}]')}.")
        return function, largest

    def new(self, value: torch.Tensor, prepared: tuple[str, float], tokens: TokenBatch) -> torch.Tensor:
        (name, largest), wide, factor = prepared, value.double(), 1.0 if self.scale is None else self.scale
        if name in ("decay", "beta"):
            if self.to is not None:
                return torch.full_like(value, self.to)
            return (wide * factor).clamp_max(largest).to(value)
        function, inverse = (silu, inverse_silu) if name == "silu" else (torch.sigmoid, _logit)
        if self.to is not None:
            target = torch.tensor(self.to, dtype=torch.float64)
            return inverse(target, torch.ones_like(target)).to(value).expand_as(value)
        return inverse(function(wide) * factor, wide)


def inverse_silu(target: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """x with silu(x) = target, float64, on the side of the minimum where `side` is; the minimum for smaller targets.

    By bisection: x is in [-1.28, target + 0.28] on the right. A last Newton step gives x its derivative.
    """
    left = side < LOWEST
    goal = target.detach()
    low = torch.where(left, -750.0, LOWEST)
    high = torch.where(left, LOWEST, goal.clamp_min(0) + 0.3)
    for _ in range(64):
        middle = (low + high) / 2
        above = (silu(middle) > goal) ^ left
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    root = (low + high) / 2
    sigmoid = torch.sigmoid(root)
    slope = sigmoid * (1 + root * (1 - sigmoid))
    return torch.where(slope.abs() > 1e-6, root + (target - silu(root)) / slope, root)


def _logit(target: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """x with sigmoid(x) = target; -SHUT or SHUT outside (0, 1)."""
    inside = (target > 0) & (target < 1)
    logit = torch.logit(torch.where(inside, target, 0.5))
    return torch.where(inside, logit, torch.where(target > 0, SHUT, -SHUT))
