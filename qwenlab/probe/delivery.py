"""From the taps to the probes: notes are counted, those of decode steps gathered, and all of them reduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from qwenlab.probe.probe import Probe
from qwenlab.probe.reading import Reading
from qwenlab.probe.taps import Notes, Part, joined, wanted_notes

STEPS = 32
"""Decode steps are reduced this many at a time: the notes of one are too small to be worth a pass of their own."""


class Delivery:
    """Hands the notes of each part to the probes that want them.

    timed  runs a probe's work, and sees to it that its time is not the model's
    """

    def __init__(self, probes: Sequence[Probe], timed: Callable[[Callable[[], None]], None]) -> None:
        self.wanted = wanted_notes(
            (layer, part, name) for probe in probes for layer in probe.layers for part, name in probe.wants(layer)
        )
        self._readers = {
            (layer, part): [probe for probe in probes if layer in probe.layers and _wants(probe, layer, part)]
            for layer, part in self.wanted
        }
        self._timed = timed
        self._fired: dict[tuple[int, Part, str], int] = {}
        self._steps: list[Reading] = []
        self._pending: dict[tuple[int, Part], list[Notes]] = {}

    def take(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        """The notes of a part that has just run: reduced now, or kept until enough decode steps are together."""
        names, whole = self.wanted[layer, part], True
        found = {name: note for name, note in notes.items() if name in names}
        for name, note in found.items():
            batch, width = note.shape[:2]
            self._fired[layer, part, name] = self._fired.get((layer, part, name), 0) + batch * width
            whole &= batch == reading.batch and width == reading.width
        if whole and len(found) == len(names):
            self._timed(lambda: self._reduce(layer, part, found, reading))

    def before(self, reading: Reading) -> None:
        """A forward pass begins: the steps kept so far are reduced, unless it is the one that follows them."""
        if self._steps and not reading.goes_on(self._steps[-1]):
            self.flush()

    def after(self, reading: Reading) -> None:
        """A forward pass has ended."""
        if reading.is_decode:
            self._steps.append(reading)
        if len(self._steps) >= STEPS:
            self.flush()

    def broke_off(self) -> None:
        """The forward pass raised: the notes of its layers that ran are dropped."""
        steps = len(self._steps)
        for notes in self._pending.values():
            if 0 < steps < len(notes) and "attention" in notes[steps]:
                _pass_keys(notes[steps], notes[steps - 1])
            del notes[steps:]

    def flush(self) -> None:
        """Reduce the decode steps kept so far."""
        steps, pending = self._steps, self._pending
        self._steps, self._pending = [], {}
        if steps:
            self._timed(lambda: self._reduce_steps(Reading.joined(steps), pending, len(steps)))

    def silent(self, columns: int) -> list[str]:
        """A line for each note that did not come, or came for other than `columns` tokens."""
        return [
            f"  {_site(layer, part, name)}: {self._fired.get((layer, part, name), 0)} of {columns} tokens"
            for (layer, part), names in sorted(self.wanted.items())
            for name in sorted(names)
            if self._fired.get((layer, part, name), 0) != columns
        ]

    def _reduce(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        if "rule" in notes:
            call: Any = notes["rule"]
            with undisturbed():
                call.settle(reading.on(call.device))
        if not reading.is_decode:
            with undisturbed():
                self._look(layer, part, notes, reading)
            return
        kept = self._pending.setdefault((layer, part), [])
        if kept and "attention" in notes:
            _pass_keys(kept[-1], notes)
        kept.append(notes)

    def _reduce_steps(self, reading: Reading, pending: dict[tuple[int, Part], list[Notes]], steps: int) -> None:
        with undisturbed():
            for (layer, part), notes in pending.items():
                if len(notes) == steps:
                    self._look(layer, part, joined(notes), reading)

    def _look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        here = reading.on(next(iter(notes.values())).device)
        for probe in self._readers[layer, part]:
            probe.look(layer, part, notes, here)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Probes work outside autograd, inference mode and autocast, whatever the block runs in."""
    with ExitStack() as modes:  # each is entered only where it changes something: there are many decode steps
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled():
            modes.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


def _pass_keys(giver: Notes, taker: Notes) -> None:
    """Of steps that follow one another only the last needs keys: the cache's, which hold those of all."""
    one: Any = giver["attention"]
    other: Any = taker["attention"]
    one.key, other.key = None, one.key if other.key is None else other.key


def _wants(probe: Probe, layer: int, part: Part) -> bool:
    return any(wanted == part for wanted, _ in probe.wants(layer))


def _site(layer: int, part: Part, name: str) -> str:
    """A note in the words of sites."""
    words = {
        "stream": f"residual, before the {part}",
        "rule": "mixer.decay",
        "attention": "mixer.query",
        "gate": "mixer.gate",
        "routed": "experts",
        "shared": "shared_expert",
        "shared_gate": "shared_expert, its gate",
        "router": "router",
        "weights": "router, its weights",
        "chosen": "router, its choice",
    }
    return f"layers.{layer}.{words.get(name, part)}"
