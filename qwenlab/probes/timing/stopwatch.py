"""Hooks that read the clock before and after every mixer, MLP and layer, for the Timing probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probes.timing.timing import PHASES, Mark, Span, Timing

PREFILL, DECODE = range(len(PHASES))


class Stopwatch:
    """Times the parts of a decoder, and subtracts the time that probes take inside a layer."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self._phase: int | None = None
        self._model_began: Any = None
        self._turns: list[Mark] = []  # of the model, before it was last suspended
        self._began: list[Any] = []  # of the layer that is running, and of its part
        self._spans: list[Span] = []  # of the current forward pass, in the order of their ends

    def outer(self, decoder: Decoder, hooks: ExitStack) -> None:
        """Time whole layers, until `hooks` closes."""
        for layer in self.timing.layers:
            self._time(decoder.layers[layer], layer, "rest", hooks)

    def inner(self, decoder: Decoder, hooks: ExitStack) -> None:
        """Time their parts; placed after the capture hooks, so that it starts last and stops first."""
        for layer in self.timing.layers:
            for part in ("mixer", "mlp"):
                self._time(decoder.part(layer, part), layer, part, hooks)

    def start_model(self, forward_pass: ForwardPass) -> None:
        """Start the clock of the decoder."""
        self._phase = DECODE if forward_pass.width == 1 else PREFILL
        self._began, self._spans, self._turns, self._model_began = [], [], [], self.timing.now()

    def end_model(self) -> None:
        """Stop the clock of the decoder, after the probes have run."""
        if self._phase is not None:
            self.timing.add_pass(self._phase, self._spans, [*self._turns, (self._model_began, self.timing.now())])
        self._phase = None

    def suspend(self) -> Callable[[], None]:
        """Stop the clock of the decoder between two layers; the returned function starts it again."""
        phase, spans, turns = self._phase, self._spans, [*self._turns, (self._model_began, self.timing.now())]
        self._phase = None

        def resume() -> None:
            self._phase, self._spans, self._turns, self._began = phase, spans, turns, []
            self._model_began = self.timing.now()

        return resume

    def leave_out(self, work: Callable[[], None]) -> None:
        """Run a probe's work; inside a layer, subtract its time from that layer's "rest"."""
        began = time.perf_counter()
        if self._phase is not None and self._began:
            start = self.timing.now()
            work()
            self._spans.append(("probes", -1, start, self.timing.now()))
        else:
            work()
        # Between two forward passes only stored decode steps are reduced.
        phase = DECODE if self._phase is None else self._phase
        self.timing.probe_seconds[phase] += time.perf_counter() - began

    def _time(self, module: nn.Module, layer: int, part: str, hooks: ExitStack) -> None:
        now = self.timing.now

        def start(args: Any, kwargs: Any) -> None:
            if self._phase is not None:
                self._began.append(now())

        def stop(args: Any, kwargs: Any, out: Any) -> None:
            if self._phase is not None and self._began:  # else the layer was skipped
                self._spans.append((part, layer, self._began.pop(), now()))

        hooks.enter_context(outputs(module, stop, before=start, inmost=True))
