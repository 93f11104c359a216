"""From the inboxes to the probes: the notes of decode steps are gathered, and all of them reduced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch

from qwenlab.capture.buffers import WHOLE, CaptureBuffer, Captured, Part
from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.tokens import TokenBatch
from qwenlab.probes.base import Probe, Reduced

STEPS, STEPS_HELD = 64, 2**25
"""Decode steps are reduced together, up to this many and up to so many bytes of notes: one alone is not worth it."""

HELD = 2**24
"""Bytes that probes keep of the layers of one pass, at most, before they look at them: for the same reason."""


class Dispatcher:
    """Hands the notes of each part to the probes that want them.

    read   makes a reading of one pass, or of several decode steps
    timed  runs a probe's work, and sees to it that its time is not the model's
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        read: Callable[[Sequence[ForwardPass]], TokenBatch],
        timed: Callable[[Callable[[], None]], None],
    ) -> None:
        self._probes, self._read, self._timed = probes, read, timed
        self._pass: ForwardPass | None = None
        self._reading: TokenBatch | None = None  # of the pass that is running, unless it is a decode step
        self._steps: list[ForwardPass] = []
        self._limit = STEPS
        self._inboxes: dict[tuple[int, Part], CaptureBuffer] = {}
        self._piles: defaultdict[tuple[Probe, Part], list[tuple[int, Reduced]]] = defaultdict(list)
        self._held = 0
        for probe in probes:
            for layer in probe.layers:
                self._subscribe(probe, layer)

    @property
    def inboxes(self) -> list[CaptureBuffer]:
        """One for each part of a layer of which something is wanted, in the order of the layers."""
        return [inbox for _, inbox in sorted(self._inboxes.items())]

    def _subscribe(self, probe: Probe, layer: int) -> None:
        for part, name in probe.wants(layer):
            inbox = self._inboxes.setdefault((layer, part), CaptureBuffer(layer, part))
            inbox.wanted.setdefault(name, WHOLE)
            if probe not in inbox.readers:
                inbox.readers.append(probe)

    def begin(self, passed: ForwardPass) -> bool:
        """A forward pass begins; True where it is a decode step right after those that were kept.

        Otherwise those are reduced.
        """
        goes_on = bool(self._steps) and passed.goes_on(self._steps[-1])
        if not goes_on:
            self.flush()
        self._pass, self._reading = passed, None if passed.is_decode else self._made([passed])
        return goes_on

    def take(self, inbox: CaptureBuffer) -> None:
        """A part has just run: its notes are reduced now, or kept until enough decode steps are together."""
        if self._pass is None or (notes := inbox.collect()) is None:
            return
        reading = self._reading
        if reading is None:
            inbox.keep(notes)
        else:
            self._timed(lambda: self._keep(inbox, [notes], reading))

    def end(self) -> None:
        """The forward pass has ended."""
        reading = self._reading
        if reading is not None:
            self._timed(lambda: self._look(reading))
        elif self._pass is not None:
            self._steps.append(self._pass)
        self._pass = self._reading = None
        if len(self._steps) == 1:
            step = sum(inbox.bytes_a_step for inbox in self._inboxes.values())
            self._limit = min(STEPS, STEPS_HELD // (step + 1) + 1)
        if len(self._steps) >= self._limit:
            self.flush()

    def broke_off(self) -> None:
        """The forward pass raised: the notes of its layers that ran are dropped."""
        for inbox in self._inboxes.values():
            inbox.forget(len(self._steps))
        self._piles, self._held = defaultdict(list), 0
        self._pass = self._reading = None

    def flush(self) -> None:
        """Reduce the decode steps kept so far."""
        if self._steps:
            self._timed(self._reduce_steps)

    def silent(self, columns: int) -> list[str]:
        """A line for each note that did not come, or came for other than `columns` tokens."""
        return [line for inbox in self.inboxes for line in inbox.silent(columns)]

    def _reduce_steps(self) -> None:
        steps, self._steps = self._steps, []
        reading = self._made(steps)
        for inbox in self.inboxes:
            kept, inbox.kept = inbox.kept, []
            if len(kept) == len(steps):
                self._keep(inbox, kept, reading)
        self._look(reading)

    def _made(self, passes: Sequence[ForwardPass]) -> TokenBatch:
        with undisturbed():
            reading = self._read(passes)
            for probe in self._probes:
                probe.look_at_tokens(reading)
        return reading

    def _keep(self, inbox: CaptureBuffer, came: Sequence[Captured], reading: TokenBatch) -> None:
        """Let every probe keep what it needs of these notes, and look at it once it is enough."""
        with undisturbed():
            notes = inbox.read(came, reading.batch, reading.width)
            if notes is None:
                return
            here = reading.on(next(iter(notes.values())).device)
            for probe in inbox.readers:
                kept = probe.keep(inbox.layer, inbox.part, notes, here)
                if kept is not None:
                    self._piles[probe, inbox.part].append((probe.layers.index(inbox.layer), kept))
                    self._held += sum(tensor.nbytes for tensor in kept.values())
        if self._held > HELD:
            self._look(reading)

    def _look(self, reading: TokenBatch) -> None:
        """Let the probes look at what they kept: of all layers at once that follow one another on one device."""
        piles, self._piles, self._held = self._piles, defaultdict(list), 0
        with undisturbed():
            for (probe, part), pile in piles.items():
                for (device, _), found in groupby(enumerate(pile), key=_run):
                    places, kept = zip(*(layer for _, layer in found), strict=True)
                    stacked = {name: torch.stack([each[name] for each in kept]) for name in kept[0]}
                    probe.look(slice(places[0], places[-1] + 1), part, stacked, reading.on(device))


def _run(numbered: tuple[int, tuple[int, Reduced]]) -> tuple[torch.device, int]:
    """What layers that follow one another on one device have in common."""
    number, (place, kept) = numbered
    return next(iter(kept.values())).device, place - number


@contextmanager
def undisturbed() -> Iterator[None]:
    """Probes work outside autograd, inference mode and autocast, whatever the block runs in."""
    with ExitStack() as modes:  # each is entered only where it changes something
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled():
            modes.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield
