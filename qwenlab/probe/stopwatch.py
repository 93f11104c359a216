"""Hooks that read the clock around every mixer, MLP and layer, for the Timing probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.reading import Reading
from qwenlab.probe.timing import PHASES, Timing

PREFILL, DECODE = range(len(PHASES))


class Stopwatch:
    """Times the parts of a decoder. What probes do inside a layer is told to it and taken out again."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self._phase: int | None = None
        self._layer: int | None = None
        self._began: dict[tuple[int, str], Any] = {}

    def outer(self, decoder: Decoder, hooks: ExitStack) -> None:
        """Read the clock around whole layers, until `hooks` closes."""
        for layer in self.timing.layers:
            self._around(decoder.layers[layer], layer, "rest", hooks)

    def inner(self, decoder: Decoder, hooks: ExitStack) -> None:
        """Read the clock around their parts; placed after all other hooks, so that it starts last and stops first."""
        for layer in self.timing.layers:
            for part in ("mixer", "mlp"):
                self._around(decoder.part(layer, part), layer, part, hooks)

    def start_model(self, reading: Reading) -> None:
        """The decoder is about to read this."""
        self._phase, self._layer = DECODE if reading.width == 1 else PREFILL, None
        self._began[-1, "model"] = self.timing.now()

    def end_model(self, reading: Reading) -> None:
        """The decoder has read it, and the probes have looked."""
        if self._phase is not None:
            self.timing.add_model(self._phase, (self._began[-1, "model"], self.timing.now()), reading.real)
        self._phase = None

    def leave_out(self, work: Callable[[], None]) -> None:
        """Do a probe's work; inside a layer, its time is taken out of that layer's rest."""
        began, start = time.perf_counter(), self.timing.now()
        work()
        if self._phase is not None and self._layer is not None:
            self.timing.add(self._phase, self._layer, "rest", (start, self.timing.now()), sign=-1)
        # Between two forward passes only decode steps that were kept are reduced.
        phase = DECODE if self._phase is None else self._phase
        self.timing.probe_seconds[phase] += time.perf_counter() - began

    def _around(self, module: nn.Module, layer: int, part: str, hooks: ExitStack) -> None:
        def start(module: nn.Module, args: Any) -> None:
            if self._phase is not None:
                self._layer = layer
                self._began[layer, part] = self.timing.now()

        def stop(module: nn.Module, args: Any, out: Any) -> None:
            if self._phase is not None:
                self._stop(layer, part)

        hooks.callback(module.register_forward_pre_hook(start).remove)
        hooks.callback(module.register_forward_hook(stop, prepend=True).remove)

    def _stop(self, layer: int, part: str) -> None:
        assert self._phase is not None
        mark = (self._began.pop((layer, part)), self.timing.now())
        self.timing.add(self._phase, layer, part, mark)
        if part == "rest":
            self.timing.calls[self._phase, self.timing.layers.index(layer)] += 1
            self._layer = None
        else:
            self.timing.add(self._phase, layer, "rest", mark, sign=-1)
