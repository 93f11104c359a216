"""Hooks that read the clock around every mixer, MLP and layer, for the Timing probe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.timing import Timing


class Stopwatch:
    """Times the parts of a decoder while it lives. What probes do inside a layer is told to it and taken out again."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.phase: int | None = None
        self._began: dict[tuple[int, str], Any] = {}
        self._layer: int | None = None
        self._hooks = ExitStack()

    def close(self) -> None:
        """Take every hook away."""
        self._hooks.close()

    def start_model(self, width: int) -> None:
        """The decoder is about to read this many tokens a sequence."""
        self.phase = 0 if width > 1 else 1
        self._began[-1, "model"] = self.timing.now()

    def end_model(self, tokens: int) -> None:
        """The decoder has read `tokens` tokens."""
        if self.phase is not None:
            self.timing.add_model(self.phase, (self._began[-1, "model"], self.timing.now()))
            self.timing.tokens[self.phase] += tokens
        self.phase = None

    def inner(self, decoder: Decoder) -> None:
        """Hooks next to the modules: placed so that they start last and stop first."""
        for layer in self.timing.layers:
            for part in ("mixer", "mlp"):
                self._around(decoder.part(layer, part), layer, part)

    def outer(self, decoder: Decoder) -> None:
        """Hooks around whole layers."""
        for layer in self.timing.layers:
            self._around(decoder.layers[layer], layer, "rest")

    def _around(self, module: nn.Module, layer: int, part: str) -> None:
        def start(module: nn.Module, args: Any) -> None:
            if self.phase is not None:
                self._layer = layer
                self._began[layer, part] = self.timing.now()

        def stop(module: nn.Module, args: Any, out: Any) -> None:
            if self.phase is not None:
                self._stop(layer, part)

        self._hooks.callback(module.register_forward_pre_hook(start).remove)
        self._hooks.callback(module.register_forward_hook(stop, prepend=True).remove)

    def _stop(self, layer: int, part: str) -> None:
        assert self.phase is not None
        mark = (self._began.pop((layer, part)), self.timing.now())
        self.timing.add(self.phase, layer, part, mark)
        if part == "rest":
            self.timing.calls[self.phase, self.timing.layers.index(layer)] += 1
            self._layer = None
        else:
            self.timing.add(self.phase, layer, "rest", mark, sign=-1)

    def leave_out(self, work: Callable[[], None]) -> None:
        """Do a probe's work; inside a layer, its time is taken out of that layer's rest."""
        began = self.timing.now()
        work()
        if self.phase is None:
            return
        mark = (began, self.timing.now())
        if self._layer is not None:
            self.timing.add(self.phase, self._layer, "rest", mark, sign=-1)
