"""`LosslessReport`, the result of `check_lossless`: verdict, first fault, errors and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.speculative.lossless.reference import COMPONENTS

LosslessVerdict = Literal["lossless", "lossless up to numerics", "NOT lossless"]


@dataclass(frozen=True)
class Fault:
    """The first round in which speculative decoding differs from plain decoding by more than numerics.

    text, round  number of the text, and of the round in it
    components   by component with an error above its bound, that error
    allowed      by component, the bound
    excess       by component, tokens in the cache minus tokens read (below 0: tokens are missing)
    layer        the lowest layer where the first of these components exceeds its bound
    """

    text: int
    round: int
    components: dict[str, float]
    allowed: dict[str, float]
    excess: dict[str, int]
    layer: int

    @property
    def component(self) -> str:
        """The first component that diverged: a fault spreads from it to the later components."""
        return next(iter(self.components))

    def __str__(self) -> str:
        first = self.component
        where = f"text {self.text}, round {self.round}"
        if first == "verdict rule":
            return (
                f"{where}: an emitted token is less likely than the target model's best by "
                f"{self.components[first]:.3g} nat; numerics explain {self.allowed[first]:.2g}"
            )
        counted = [f"{name} {n:+d}" for name, n in self.excess.items() if n]
        more = f"; tokens in the cache minus tokens read: {', '.join(counted)}" if counted else ""
        others = [name for name in self.components if name != first]
        also = f"; in the same round also {', '.join(others)}" if others else ""
        error, allowed = self.components[first], self.allowed[first]
        off = f"is off by {error:.2g} from layer {self.layer} on, where {allowed:.1g} is allowed"
        return f"{where}: {first} {'does not match the emitted tokens' if np.isinf(error) else off}{also}{more}"


@dataclass(frozen=True, eq=False)
class LosslessReport:
    """The verdict on speculative decoding, with its evidence. True if there is no fault.

    verdict   "lossless": every token is plain decoding's, every error of a state is allowed;
              "lossless up to numerics": some tokens differ, where their regret is within the noise;
              "NOT lossless": see `fault`
    fault     the first bad round, or None
    rounds    Dataset over `round`: relative error of each component, from plain decoding; `regret`, the largest
              ln p(best) - ln p(emitted) of its tokens under plain decoding [nat]; `allowed_regret`, the largest
              allowed [nat]
    noise_floor
              by component, the largest error that reading in blocks of depth + 1 causes by itself; of "verdict rule",
              the 0.99 quantile of the noise of competing tokens over all positions [nat]
    differing_tokens
              number of tokens that are not plain decoding's argmax
    tokens    number of checked tokens
    detectable
              the largest allowed regret at any position [nat]; most allow less: see `rounds["allowed_regret"]`
    """

    verdict: LosslessVerdict
    fault: Fault | None
    rounds: xr.Dataset
    noise_floor: dict[str, float]
    differing_tokens: int
    tokens: int
    detectable: float

    def __bool__(self) -> bool:
        return self.fault is None

    def __repr__(self) -> str:
        attrs = self.rounds.attrs
        regret, median = float(self.rounds["regret"].max()), float(self.rounds["allowed_regret"].median())
        lines = [
            f"{self.verdict}: {self.tokens:,} tokens in {self.rounds.sizes['round']:,} rounds, "
            f"rule {attrs['rule']}, depth {attrs['depth']}, rollback {attrs['rollback']}",
            f"first fault: {self.fault}" if self.fault else "",
            f"{self.differing_tokens} tokens differ from plain decoding, the worst by {regret:.2g} nat"
            if self.differing_tokens
            else "",
            f"detects every token more than {self.detectable:.3g} nat below the best; "
            f"in half of the rounds, more than {median:.3g} nat",
        ]
        for name in COMPONENTS[1:]:
            worst = float(self.rounds[error_variable(name)].max())
            lines.append(f"{name:<16} largest error {worst:.1e}, noise floor {self.noise_floor[name]:.1e}")
        return "\n  ".join(filter(None, lines))

    def _repr_html_(self) -> str:
        return f'<pre style="font-family:monospace;font-size:90%;line-height:1.4">{escape(repr(self))}</pre>'


def error_variable(component: str) -> str:
    """Name of the variable with a component's error in `LosslessReport.rounds`."""
    return component.replace(" ", "_") + "_error"
