"""What became of the changes at the places of one model: whether each was reached, and whether it acted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import CannotIntervene


@dataclass
class HitCount:
    """What became of one change: how often its place was reached, and how often it acted there."""

    where: str
    reached: int = 0
    acted: int = 0


@dataclass
class CountedPoints:
    """Changes inside one model, told what is read and counted.

    A place that is reached while the model is not running is not changed.

    hooks  what holds the changes in their places; closed with the block
    fired  every change that was asked for
    """

    decoder: Decoder
    hooks: ExitStack
    fired: list[HitCount] = field(default_factory=list)
    _reading: TokenBatch | None = None
    _thread: int = 0  # the one that runs the pass; another may be in a pass that began before the block

    def begin(self, reading: TokenBatch) -> None:
        """The model is about to read this, in the current thread."""
        self._reading, self._thread = reading, get_ident()

    def end(self) -> None:
        """The pass is over."""
        self._reading = None

    def _note(self, where: str) -> HitCount:
        self.fired.append(HitCount(where))
        return self.fired[-1]

    def _now(self) -> TokenBatch | None:
        """The tokens that the current thread reads, or None. Raises CannotIntervene in a backward pass."""
        if self._reading is not None and self._thread != get_ident():
            return None
        if self._reading is None and torch._C._current_graph_task_id() >= 0:
            raise CannotIntervene(
                "A layer is run again in the backward pass, where edits no longer know what is read.\n"
                "Turn checkpointing of its activations off for this block."
            )
        return self._reading

    def _told(self, fired: HitCount, change: Callable[[Any, TokenBatch], Any], held: Any) -> Any:
        """What a change makes of what is held, counted."""
        if (reading := self._now()) is None:
            return None
        fired.reached += 1
        device = held.device if isinstance(held, torch.Tensor) else held.at
        new = change(held, reading.on(device))
        fired.acted += new is not None
        return new
