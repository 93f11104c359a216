"""Hit counts: was each intervention point reached, and did the intervention change anything there?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.errors import CannotIntervene


@dataclass
class HitCount:
    """Counts at one intervention point.

    where    its name: a site, or a function that a layer calls
    reached  how often a forward pass reached it
    acted    how often the intervention changed the value there
    """

    where: str
    reached: int = 0
    acted: int = 0


@dataclass
class HitCounter:
    """Runs the interventions on one model and counts them; outside a forward pass none of them acts.

    counts  one per intervention point, in the order in which they were added
    """

    counts: list[HitCount] = field(default_factory=list)
    _tokens: TokenBatch | None = None
    _thread: int = 0  # the one that runs the pass; another may be in a pass that began before the block

    def add(self, where: str) -> HitCount:
        """The count of a new intervention point."""
        self.counts.append(HitCount(where))
        return self.counts[-1]

    def begin(self, tokens: TokenBatch) -> None:
        """Start of a forward pass over these tokens, in the current thread."""
        self._tokens, self._thread = tokens, get_ident()

    def end(self) -> None:
        """End of the forward pass."""
        self._tokens = None

    def tokens(self) -> TokenBatch | None:
        """The tokens that the current thread reads, or None. Raises CannotIntervene in a backward pass."""
        if self._tokens is not None and self._thread != get_ident():
            return None
        if self._tokens is None and torch._C._current_graph_task_id() >= 0:
            raise CannotIntervene(
                "A layer runs again in the backward pass, where interventions do not know which tokens it reads.\n"
                "Turn off activation checkpointing for this block."
            )
        return self._tokens

    def apply(self, count: HitCount, change: Callable[[Any, TokenBatch], Any], value: Any) -> Any:
        """The changed value, counted; None where nothing changes."""
        if (tokens := self.tokens()) is None:
            return None
        count.reached += 1
        new = change(value, tokens.on(value.device))
        count.acted += new is not None
        return new
