"""The timing probe: where the time of a forward pass goes, by part of each layer, prefill and decode apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probes.base import Probe

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
        self._seconds = [{layer: dict.fromkeys(TIMED, 0.0) for layer in self.layers} for _ in PHASES]
        self._calls = [dict.fromkeys(self.layers, 0) for _ in PHASES]
        self._model_seconds = dict.fromkeys(range(len(PHASES)), 0.0)
        self.probe_seconds = [0.0 for _ in PHASES]
        self.tokens = [torch.zeros((), dtype=torch.int64) for _ in PHASES]
        self.readings = 0
        self._waiting: list[tuple[dict[Any, float], Any, Mark, int]] = []
        self.clock_cost = self._measure_clock()

    def now(self) -> Any:
        """One reading of the clock."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add_layer(self, phase: int, layer: int, spans: Sequence[tuple[str, Mark]]) -> None:
        """Book a layer that has run to its end: "rest" is the whole less the other spans, of parts and of probes."""
        seconds, calls = self._seconds[phase][layer], self._calls[phase]
        calls[layer] += 1
        for name, mark in spans:
            if name != "probes":
                self._book(seconds, name, mark, 1)
            if name != "rest":
                self._book(seconds, "rest", mark, -1)

    def add_model(self, phase: int, mark: Mark) -> None:
        """Add a span to the seconds of the whole decoder."""
        self._book(self._model_seconds, phase, mark, 1)

    def look_at_tokens(self, reading: TokenBatch) -> None:
        """Count the tokens of each phase."""
        phase = PHASES.index("decode") if reading.decode or reading.width == 1 else PHASES.index("prefill")
        self.tokens[phase] = self.tokens[phase].to(reading.real.device) + reading.real.sum()

    def _book(self, account: dict[Any, float], name: Any, mark: Mark, sign: int) -> None:
        if not self.on_gpu:
            account[name] += sign * (mark[1] - mark[0])
            return
        self._waiting.append((account, name, mark, sign))
        if len(self._waiting) > UNREAD:
            self._read(only_done=True)

    def _read(self, only_done: bool) -> None:
        left = []
        for account, name, (start, end), sign in self._waiting:
            if only_done and not end.query():
                left.append((account, name, (start, end), sign))
                continue
            end.synchronize()
            account[name] += sign * start.elapsed_time(end) / 1000
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
        seconds = [[list(parts.values()) for parts in of_phase.values()] for of_phase in self._seconds]
        calls = [list(of_phase.values()) for of_phase in self._calls]
        model_seconds = list(self._model_seconds.values())
        what = "device" if self.on_gpu else "wall-clock"
        dataset = self._dataset(
            labels,
            {
                "seconds": ((*by_layer, "part"), np.array(seconds), "s", f"{what} time of the part, summed over calls"),
                "calls": (by_layer, np.array(calls), "call", "forward passes"),
                "model_seconds": (
                    ("phase",),
                    np.array(model_seconds),
                    "s",
                    f"{what} time of the decoder, probes included",
                ),
                "probe_seconds": (
                    ("phase",),
                    np.array(self.probe_seconds),
                    "s",
                    "host time of the probes themselves",
                ),
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
