"""Result of `check_lossless`: the verdict, the first fault, and the errors that were allowed."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.speculative.lossless.witness import COMPONENTS

LosslessVerdict = Literal["lossless", "lossless up to numerics", "NOT lossless"]


@dataclass(frozen=True)
class Fault:
    """Where drafted decoding first left plain decoding.

    text, round  of the first bad round;  components: those beyond what is allowed in it, each with its error
    allowed      the errors that are allowed;  excess: tokens that a component holds too many (below 0: too few)
    layer        the lowest layer where the first of these components is beyond that
    """

    text: int
    round: int
    components: dict[str, float]
    allowed: dict[str, float]
    excess: dict[str, int]
    layer: int

    @property
    def component(self) -> str:
        """The first one that diverged: a fault in one reaches the others later."""
        return next(iter(self.components))

    def __str__(self) -> str:
        first = self.component
        where = f"text {self.text}, round {self.round}"
        if first == "verdict rule":
            return (
                f"{where}: a token was emitted that the main model finds less likely than its best by "
                f"{self.components[first]:.3g} nat; numerics explain {self.allowed[first]:.2g}"
            )
        counted = [f"{name} {n:+d}" for name, n in self.excess.items() if n]
        more = f"; tokens held beyond those read: {', '.join(counted)}" if counted else ""
        others = [name for name in self.components if name != first]
        also = f"; in the same round also {', '.join(others)}" if others else ""
        error, allowed = self.components[first], self.allowed[first]
        off = f"is off by {error:.2g} from layer {self.layer} on, where {allowed:.1g} is allowed"
        return f"{where}: {first} {'is not that of the tokens emitted' if np.isinf(error) else off}{also}{more}"


@dataclass(frozen=True, eq=False)
class LosslessReport:
    """The verdict on drafted decoding, and what it rests on.

    verdict   "lossless": every token is plain decoding's, every state within the noise floor;
              "lossless up to numerics": some tokens differ where plain decoding was undecided within the noise floor;
              "NOT lossless": see `fault`
    fault     the first bad round, or None
    rounds    Dataset over `round`: relative error of each component against plain decoding; `regret`, the largest
              ln p(best) - ln p(emitted) of its tokens by plain decoding [nat]; `allowed_regret`, the largest that was
              allowed [nat]
    floor     by component, the largest error that reading in blocks of depth + 1 causes by itself; of "verdict rule",
              the 0.99 quantile of the noise of competing tokens over all positions [nat]
    differing tokens that are not plain decoding's argmax
    tokens    tokens checked
    detectable
              the largest allowed regret [nat]: at every position, a token less likely than the best by more than this
              is detected. Most positions allow less: see `rounds["allowed_regret"]`
    """

    verdict: LosslessVerdict
    fault: Fault | None
    rounds: xr.Dataset
    floor: dict[str, float]
    differing: int
    tokens: int
    detectable: float

    def __bool__(self) -> bool:
        return self.fault is None

    def __repr__(self) -> str:
        lines = [f"{self.verdict}: {self.tokens:,} tokens in {self.rounds.sizes['round']:,} rounds, {self._how()}"]
        if self.fault is not None:
            lines.append(f"  first fault: {self.fault}")
        if self.differing:
            regret = float(self.rounds["regret"].max())
            lines.append(f"  {self.differing} tokens differ from plain decoding, the worst by {regret:.2g} nat")
        median = float(self.rounds["allowed_regret"].median())
        lines.append(
            f"  detects every token more than {self.detectable:.3g} nat below the best; "
            f"in half of the rounds, more than {median:.3g} nat"
        )
        for name in COMPONENTS[1:]:
            worst = float(self.rounds[variable(name)].max())
            lines.append(f"  {name:<16} largest error {worst:.1e}, noise floor {self.floor[name]:.1e}")
        return "\n".join(lines)

    def _how(self) -> str:
        attrs = self.rounds.attrs
        return f"rule {attrs['rule']}, depth {attrs['depth']}, rollback {attrs['rollback']}"

    def _repr_html_(self) -> str:
        return f'<pre style="font-family:monospace;font-size:90%;line-height:1.4">{escape(repr(self))}</pre>'


def variable(component: str) -> str:
    """Name of a component's error in `Losslessness.rounds`."""
    return component.replace(" ", "_") + "_error"
