"""The timing probe: where the time of a forward pass goes, by part of each layer, prefill and decode apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probe.probe import Probe

PHASES = ("prefill", "decode")
TIMED = ("mixer", "mlp", "rest")

Mark = tuple[Any, Any]
"""A reading of the clock at the start of a span, and one at its end."""

UNREAD = 4096
"""CUDA events that may wait to be read: beyond this many, those already done are added up."""


class Timing(Probe):
    """Seconds of every mixer, every MLP and the rest of every layer, with what the readings themselves cost.

    The clock is `perf_counter` on a CPU and a pair of CUDA events around the part on a GPU. What other probes of the
    same `watch` do is done after a part has ended and is not in its time; it is in `probe_seconds` (host time). "rest"
    is the layer less its mixer, its MLP and the probes' time: norms and residual additions. A forward pass of more than
    one token a sequence is prefill, of one token decode.

    layers  only these layers
    """

    name = "timing"

    def start(self, decoder: Decoder) -> None:
        """Empty clocks, and the cost of reading one."""
        super().start(decoder)
        self.on_gpu = next(decoder.module.parameters()).is_cuda
        self.seconds = np.zeros((len(PHASES), len(self.layers), len(TIMED)))
        self.calls = np.zeros((len(PHASES), len(self.layers)), dtype=np.int64)
        self.model_seconds, self.probe_seconds = np.zeros(len(PHASES)), np.zeros(len(PHASES))
        self.tokens = [torch.zeros((), dtype=torch.int64) for _ in PHASES]
        self.readings = 0
        self._waiting: list[tuple[Callable[[float], None], Mark]] = []
        self.clock_cost = self._measure_clock()

    def now(self) -> Any:
        """One reading of the clock."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, phase: int, layer: int, timed: str, mark: Mark, sign: int = 1) -> None:
        """Add a span to a part's seconds; `sign` -1 takes it away."""
        index = (phase, self.layers.index(layer), TIMED.index(timed))

        def book(seconds: float) -> None:
            self.seconds[index] += sign * seconds

        self._book(book, mark)

    def add_model(self, phase: int, mark: Mark, real: torch.Tensor) -> None:
        """Add a span to the seconds of the whole decoder, in which it read the tokens that are `real`."""

        def book(seconds: float) -> None:
            self.model_seconds[phase] += seconds

        self._book(book, mark)
        self.tokens[phase] = self.tokens[phase].to(real.device) + real.sum()

    def _book(self, book: Callable[[float], None], mark: Mark) -> None:
        if not self.on_gpu:
            book(mark[1] - mark[0])
            return
        self._waiting.append((book, mark))
        if len(self._waiting) > UNREAD:
            self._read(only_done=True)

    def _read(self, only_done: bool) -> None:
        left = []
        for book, (start, end) in self._waiting:
            if only_done and not end.query():
                left.append((book, (start, end)))
                continue
            end.synchronize()
            book(start.elapsed_time(end) / 1000)
        self._waiting = left

    def _measure_clock(self, pairs: int = 200) -> float:
        """Median host seconds of one pair of readings."""
        costs = []
        for _ in range(pairs):
            began = time.perf_counter()
            self.now(), self.now()
            costs.append(time.perf_counter() - began)
        return float(np.median(costs))

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Seconds and calls by phase, layer and part."""
        self._read(only_done=False)
        by_layer = ("phase", "layer")
        what = "device" if self.on_gpu else "wall-clock"
        dataset = self._dataset(
            labels,
            {
                "seconds": ((*by_layer, "part"), self.seconds, "s", f"{what} time of the part, summed over calls"),
                "calls": (by_layer, self.calls, "call", "forward passes"),
                "model_seconds": (("phase",), self.model_seconds, "s", f"{what} time of the decoder, probes included"),
                "probe_seconds": (("phase",), self.probe_seconds, "s", "host time of the probes themselves"),
                "tokens": (("phase",), np.array([int(n) for n in self.tokens]), "token", "tokens read"),
            },
            phase=("phase", np.array(PHASES, dtype=object)),
            part=("part", np.array(TIMED, dtype=object)),
        )
        return dataset.assign_attrs(
            clock="cuda_event" if self.on_gpu else "perf_counter",
            clock_cost_seconds=self.clock_cost,
            readings=self.readings,
        )
