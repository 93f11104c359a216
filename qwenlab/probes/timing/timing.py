"""The timing probe: time of a forward pass by part of each layer, separately for prefill and decode."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.capture.tokens import TokenBatch, added
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probes.base import Probe

PHASES = ("prefill", "decode")
TIMED = ("mixer", "mlp", "rest")

Mark = tuple[Any, Any]
"""Clock readings at the start and at the end of a span."""

Span = tuple[str, int, Any, Any]
"""A part, "rest" for the whole layer, or "probes"; the layer; and the clock readings at the start and at the end."""

MAX_PASSES = 64
"""Passes whose spans may wait to be summed."""

MAX_EVENTS = 4096
"""CUDA events that may wait to be read; beyond this many, the completed ones are added up."""


class Timing(Probe):
    """Seconds of every mixer, every MLP and the rest of every layer, and the cost of reading the clock.

    The clock is `perf_counter` on a CPU and a pair of CUDA events on a GPU. Other probes of the same `watch` run after
    a part has ended, so their time is not in that of the part; it is in `probe_seconds` (host time). "rest" is the time
    of the layer minus those of its mixer, its MLP and the probes: norms and residual additions. A forward pass of more
    than one token per sequence is prefill, one of a single token is decode.

    layers  only these layers
    """

    name = "timing"
    changing = ("_seconds", "_calls", "probe_seconds", "tokens", "_passes", "_waiting")

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self.on_gpu = next(decoder.module.parameters()).is_cuda
        self._seconds = defaultdict[tuple[Any, ...], float](float)  # by (phase, layer, part) and (phase, "model")
        self._calls = Counter[tuple[int, int]]()  # by (phase, layer)
        self.probe_seconds = [0.0 for _ in PHASES]
        self.tokens = [torch.zeros((), dtype=torch.int64) for _ in PHASES]
        self.readings = 0
        self._passes: list[tuple[int, list[Span], list[Mark]]] = []  # not yet added
        self._waiting: list[tuple[tuple[Any, ...], Mark, int]] = []
        self.clock_cost = _cost_of_a_pair(self.now)

    @property
    def now(self) -> Callable[[], Any]:
        """Function that reads the clock: seconds on a CPU, a CUDA event on a GPU."""
        return _event if self.on_gpu else time.perf_counter

    def add_pass(self, phase: int, spans: list[Span], model: list[Mark]) -> None:
        """Add the spans of a forward pass; those inside a layer come before its own, "rest".

        model  the times at which the decoder ran: one, or one per turn of a pass that took turns with others
        """
        self.readings += len(spans) + len(model)
        self._passes.append((phase, spans, model))
        if len(self._passes) >= MAX_PASSES:  # a decode step has no time for sums
            self._add_passes()

    def _add_passes(self) -> None:
        passes, self._passes = self._passes, []
        for each in passes:
            self._add_spans(*each)

    def _add_spans(self, phase: int, spans: list[Span], model: list[Mark]) -> None:
        inside: list[Mark] = []
        for part, layer, began, ended in spans:
            if part == "rest":
                self._calls[phase, layer] += 1
                for mark in inside:
                    self._add((phase, layer, "rest"), mark, -1)
                inside = []
            else:
                inside.append((began, ended))
            if part != "probes":
                self._add((phase, layer, part), (began, ended), 1)
        for mark in model:
            self._add((phase, "model"), mark, 1)

    def on_tokens(self, tokens: TokenBatch) -> None:
        phase = PHASES.index("decode") if tokens.decode or tokens.width == 1 else PHASES.index("prefill")
        self.tokens[phase] = added(self.tokens[phase], tokens.real.sum())

    def _add(self, account: tuple[Any, ...], mark: Mark, sign: int) -> None:
        if not self.on_gpu:
            self._seconds[account] += sign * (mark[1] - mark[0])
            return
        self._waiting.append((account, mark, sign))
        if len(self._waiting) > MAX_EVENTS:
            self._read(only_completed=True)

    def _read(self, only_completed: bool) -> None:
        pending = []
        for account, (start, end), sign in self._waiting:
            if only_completed and not end.query():
                pending.append((account, (start, end), sign))
                continue
            end.synchronize()
            self._seconds[account] += sign * start.elapsed_time(end) / 1000
        self._waiting = pending

    def snapshot(self, labels: list[str]) -> Callable[[], xr.Dataset]:
        self._add_passes()
        self._read(only_completed=False)
        return super().snapshot(labels)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        self._add_passes()
        self._read(only_completed=False)
        by_layer, phases, layers, took = ("phase", "layer"), range(len(PHASES)), self.layers, self._seconds
        seconds = np.array([[[took[phase, layer, part] for part in TIMED] for layer in layers] for phase in phases])
        calls = np.array([[self._calls[phase, layer] for layer in layers] for phase in phases])
        model, probes = np.array([took[phase, "model"] for phase in phases]), np.array(self.probe_seconds)
        clock = "device" if self.on_gpu else "wall-clock"
        dataset = self.build_dataset(
            labels,
            {
                "seconds": ((*by_layer, "part"), seconds, "s", f"{clock} time of the part, summed over calls"),
                "calls": (by_layer, calls, "call", "forward passes"),
                "model_seconds": (("phase",), model, "s", f"{clock} time of the decoder, probes included"),
                "probe_seconds": (("phase",), probes, "s", "host time of the probes themselves"),
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


def _cost_of_a_pair(now: Callable[[], Any], pairs: int = 200) -> float:
    """Return the host seconds that one pair of readings takes, the median of many."""
    seconds = []
    for _ in range(pairs):
        began = time.perf_counter()
        now()
        now()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
