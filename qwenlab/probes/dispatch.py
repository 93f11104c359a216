"""Dispatch captured values from the buffers to the probes, and reduce decode steps in groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from qwenlab.capture.buffers import CaptureBuffer, Captured, Part
from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.hooks import readable
from qwenlab.capture.sampled_steps import SampledSteps
from qwenlab.capture.tokens import TokenBatch
from qwenlab.errors import BadArgument
from qwenlab.probes.base import Probe, Reduced

MAX_STEPS, MAX_STEP_BYTES = 64, 2**25
"""Decode steps are reduced together, up to this many steps and bytes, since reducing each one alone is slow."""

MAX_PENDING_BYTES = 2**24
"""Bytes of reduced values of one pass that may wait to be accumulated for several layers at once."""


class Dispatcher:
    """Passes the captured values of each layer part to the probes that want them.

    read   makes a TokenBatch of one pass, or of several decode steps
    timed  runs a probe's work, and excludes its time from the model's
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        read: Callable[[Sequence[ForwardPass]], TokenBatch],
        timed: Callable[[Callable[[], None]], None],
    ) -> None:
        self._probes, self._read, self._timed = probes, read, timed
        self._pass: ForwardPass | None = None
        self._tokens: TokenBatch | None = None  # of the current pass, unless it is a decode step
        self._steps: list[ForwardPass] = []
        self.sampled = True  # whether the current pass has tokens that probes sample
        self._limit = MAX_STEPS
        self._buffers: dict[tuple[int, Part], CaptureBuffer] = {}
        self._readable: dict[int, tuple[str, ...]] = {}  # names, by layer
        self._pending: defaultdict[tuple[Probe, Part], list[tuple[int, Reduced]]] = defaultdict(list)
        self._pending_bytes = 0
        samplers = [probe for probe in probes if any(map(tuple, map(probe.sampled_sites, probe.layers)))]
        self._sampled_steps = SampledSteps(probe.every for probe in samplers)
        for probe in probes:
            for layer in probe.layers:
                self._subscribe(probe, layer)
            if probe.layers and type(probe).reduce is not Probe.reduce and not self._reads(probe):
                raise BadArgument(
                    f"{type(probe).__name__} implements reduce, and its sites() name no value: it would read nothing.\n"
                    'Return names, such as ("mixer.gate",), from sites(layer).'
                )

    @property
    def buffers(self) -> list[CaptureBuffer]:
        """One buffer for each layer part that some probe reads, in the order of the layers."""
        return [buffer for _, buffer in sorted(self._buffers.items())]

    def _subscribe(self, probe: Probe, layer: int) -> None:
        names, sampled = tuple(probe.sites(layer)), set(probe.sampled_sites(layer))
        if unnamed := sampled.difference(names):
            raise BadArgument(
                f"{type(probe).__name__}.sampled_sites({layer}) names {', '.join(sorted(unnamed))}, which its "
                f"sites({layer}) does not.\nName each value in sites(layer); sampled_sites(layer) repeats some."
            )
        if "mixer.state" in sampled:
            raise BadArgument(
                f"{type(probe).__name__}.sampled_sites({layer}) names mixer.state, which needs every token: a state "
                "depends on all tokens before it.\nName it in sites(layer) alone."
            )
        for name in names:
            self._require_readable(probe, layer, name)
            part = "mixer" if name.partition(".")[0] == "mixer" else "mlp"
            buffer = self._buffers.get((layer, part)) or self._buffers.setdefault(
                (layer, part), CaptureBuffer(layer, part)
            )
            buffer.want(name, probe.decoder.layer_types[layer], name in sampled)
            if name == "mixer.state":
                buffer.state_heads |= set(probe.state_heads(layer))
            if probe not in buffer.readers:
                buffer.readers.append(probe)

    def _require_readable(self, probe: Probe, layer: int, name: str) -> None:
        """Raise BadArgument unless the layer has a value of this name to read."""
        known = self._readable.get(layer) or self._readable.setdefault(layer, readable(probe.decoder, layer))
        if name not in known:
            raise BadArgument(
                f"{type(probe).__name__}.sites({layer}) names {name!r}, which is not a value to read in layer {layer}, "
                f"a {probe.decoder.layer_types[layer]} layer.\nIt has: {', '.join(known)}."
            )

    def _reads(self, probe: Probe) -> bool:
        return any(probe in buffer.readers for buffer in self._buffers.values())

    def begin(self, forward_pass: ForwardPass) -> bool:
        """Begin a forward pass. Return True if it is the decode step right after the stored ones, else reduce those."""
        goes_on = bool(self._steps) and forward_pass.goes_on(self._steps[-1])
        if not goes_on:
            self.flush()
        self._pass = forward_pass
        self.sampled = not goes_on or self._sampled_steps.has(forward_pass)
        self._tokens = None if forward_pass.is_decode else self._tokens_of([forward_pass])
        return goes_on

    def take(self, buffer: CaptureBuffer) -> None:
        """Reduce the values of a part that has just run. Those of decode steps are reduced in groups instead."""
        tokens = self._tokens
        if tokens is not None and (captured := buffer.collect(self.sampled)) is not None:
            self._timed(lambda: self._reduce(buffer, [captured], tokens))

    def end(self) -> None:
        """End the forward pass."""
        tokens = self._tokens
        if tokens is not None:
            self._timed(lambda: self._accumulate(tokens))
        elif self._pass is not None:
            for buffer in self._buffers.values():
                buffer.add_step(self.sampled)
            self._steps.append(self._pass)
        self._pass = self._tokens = None
        if len(self._steps) == 1:
            step = sum(buffer.bytes_per_step for buffer in self._buffers.values())
            self._limit = min(MAX_STEPS, MAX_STEP_BYTES // (step + 1) + 1)
        if len(self._steps) >= self._limit:
            self.flush()

    def abort(self) -> None:
        """Drop the values of a forward pass that raised."""
        self._pending, self._pending_bytes = defaultdict(list), 0
        self._pass = self._tokens = None

    def suspend(self) -> Callable[[], None]:
        """Put the current pass aside between two layers; the returned function takes it up again.

        What is pending is accumulated first. So the sums of a layer get its texts in the order of the texts, as where
        each text runs alone; and since a probe adds up each layer by itself, the sums are the same, bit for bit.
        """
        tokens, forward_pass = self._tokens, self._pass
        if tokens is not None and self._pending:
            self._timed(lambda: self._accumulate(tokens))
        self._pass = self._tokens = None

        def resume() -> None:
            self._pass, self._tokens = forward_pass, tokens

        return resume

    def flush(self) -> None:
        """Reduce the decode steps stored so far."""
        if self._steps:
            self._timed(self._reduce_steps)

    def silent(self, columns: int) -> list[str]:
        """Return a line for each value that was not captured for exactly `columns` tokens."""
        return [line for buffer in self.buffers for line in buffer.silent(columns)]

    def _reduce_steps(self) -> None:
        steps, self._steps = self._steps, []
        tokens = self._tokens_of(steps)
        if steps[0].keys is None:
            tokens = replace(tokens, kept=self._sampled_steps.kept(steps), kept_every=self._sampled_steps.every)
        for buffer in self.buffers:
            captured, buffer.steps = buffer.steps, []
            if len(captured) == len(steps):
                self._reduce(buffer, captured, tokens)
        self._accumulate(tokens)

    def _tokens_of(self, passes: Sequence[ForwardPass]) -> TokenBatch:
        with undisturbed():
            tokens = self._read(passes)
            for probe in self._probes:
                probe.on_tokens(tokens)
        return tokens

    def _reduce(self, buffer: CaptureBuffer, passes: Sequence[Captured], tokens: TokenBatch) -> None:
        """Let every probe reduce these values; accumulate once enough are pending."""
        with undisturbed():
            captured = buffer.read(passes, tokens.batch, tokens.width)
            if captured is None:
                return
            here = tokens.on(next(iter(captured.values())).device)
            for probe in buffer.readers:
                reduced = probe.reduce(buffer.layer, buffer.part, captured, here)
                if reduced is not None:
                    self._pending[probe, buffer.part].append((probe.layers.index(buffer.layer), reduced))
                    self._pending_bytes += sum(tensor.nbytes for tensor in reduced.values())
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._accumulate(tokens)

    def _accumulate(self, tokens: TokenBatch) -> None:
        """Let the probes accumulate what is pending, consecutive layers on one device at once."""
        pending, self._pending, self._pending_bytes = self._pending, defaultdict(list), 0
        with undisturbed():
            for (probe, part), of_layers in pending.items():
                for (device, _), group in groupby(enumerate(of_layers), key=_device_and_offset):
                    places, reduced = zip(*(layer for _, layer in group), strict=True)
                    stacked = {name: torch.stack([each[name] for each in reduced]) for name in reduced[0]}
                    probe.accumulate(slice(places[0], places[-1] + 1), part, stacked, tokens.on(device))


def _device_and_offset(numbered: tuple[int, tuple[int, Reduced]]) -> tuple[torch.device, int]:
    """Return a key that consecutive layers on one device share."""
    number, (place, reduced) = numbered
    return next(iter(reduced.values())).device, place - number


def undisturbed() -> AbstractContextManager[Any]:
    """Return a context manager that leaves autograd, inference mode and autocast, for the work of probes."""
    modes: list[AbstractContextManager[Any]] = []  # each only where it changes something
    if torch.is_inference_mode_enabled():
        modes += [torch.inference_mode(False), torch.no_grad()]  # the first turns autograd on
    elif torch.is_grad_enabled():
        modes.append(torch.no_grad())
    modes += [torch.autocast(each, enabled=False) for each in ("cpu", "cuda") if torch.is_autocast_enabled(each)]
    if len(modes) < 2:
        return modes[0] if modes else nullcontext()
    return _all_of(modes)


@contextmanager
def _all_of(modes: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
