"""What hooks leave of one part of a layer, as it comes and as probes read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwenlab.capture.delta_rule import DeltaRuleCall, constant

Part = str
PARTS: tuple[Part, ...] = ("mixer", "mlp")


@dataclass
class AttentionCall:
    """One call of the attention function by one layer, or those of decode steps that follow one another.

    query    [batch, head, position, channel], rotated and normalised
    key      [batch, key head, past + position, channel]: all keys of the cache, rotated and normalised
    scaling  what the scores are multiplied by
    value    [batch, key head, past + position, channel], of layers whose map is asked for
    seen     bool [batch, 1 or head, position, past + position]: what each query may look at, where an edit changed that
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    value: torch.Tensor | None = None
    seen: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position]"""
        return self.query.shape[0], self.query.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.query.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the tokens."""
        return self.query.nbytes + (0 if self.seen is None else self.seen.nbytes)

    @staticmethod
    def joined(calls: list[AttentionCall]) -> AttentionCall:
        """Decode steps that follow one another: the last one's keys and values hold those of all."""
        last, query = calls[-1], torch.cat([call.query for call in calls], dim=2)
        seen = None if all(call.seen is None for call in calls) else _seen_by_steps(calls)
        return AttentionCall(query, last.key, last.scaling, last.value, seen)


CapturedValue = torch.Tensor | DeltaRuleCall | AttentionCall
Captured = dict[str, CapturedValue]


@dataclass(frozen=True)
class CaptureLayout:
    """How a note lies when it comes, which is put right only when it is read: decode steps have no time for it.

    rows   how many rows a token has where sequence and position are one axis; 0 where they are two
    shape  what the last axis is divided into
    index  what is taken of the axis before the last then
    """

    rows: int = 0
    shape: tuple[int, ...] = ()
    index: int | None = None

    def tokens(self, note: CapturedValue) -> int:
        """How many tokens it is of."""
        return note.shape[0] // self.rows if self.rows else note.shape[0] * note.shape[1]

    def read(self, notes: Sequence[Any], batch: int) -> CapturedValue:
        """The notes of steps that follow one another, joined along the positions: [batch, position, ...]."""
        if not isinstance(notes[0], torch.Tensor):
            return notes[0] if len(notes) == 1 else type(notes[0]).joined(list(notes))
        if self.rows and len(notes) > 1:  # decode steps: [batch * rows, ...] each
            note = torch.stack(list(notes)).unflatten(1, (batch, -1)).transpose(0, 1)
            note = note if self.rows > 1 else note[:, :, 0]
        elif self.rows:
            rows = (self.rows,) if self.rows > 1 else ()
            note = notes[0].reshape(batch, -1, *rows, *notes[0].shape[1:])
        else:
            note = notes[0] if len(notes) == 1 else torch.cat(list(notes), dim=1)
        note = note.unflatten(-1, self.shape) if self.shape else note
        return note if self.index is None else note[..., self.index, :]


WHOLE, FLAT = CaptureLayout(), CaptureLayout(rows=1)


@dataclass(eq=False)
class CaptureBuffer:
    """Where the notes of one part of one layer arrive.

    wanted   names of the notes that some probe reads, each with its form
    readers  the probes that do
    notes    those of the forward pass that is running;  kept: those of decode steps not yet reduced
    """

    layer: int
    part: Part
    wanted: dict[str, CaptureLayout] = field(default_factory=dict)
    readers: list[Any] = field(default_factory=list)
    notes: Captured = field(default_factory=dict)
    kept: list[Captured] = field(default_factory=list)
    _complete: int = 0
    _partly: Counter[str] = field(default_factory=Counter)

    def leave(self, name: str, value: torch.Tensor) -> None:
        """Note a value of the pass that is running."""
        self.notes[name] = constant(value)

    def collect(self) -> Captured | None:
        """The notes left since the last time; None where one is missing, and then the others are only counted."""
        notes, self.notes = self.notes, {}
        if len(notes) == len(self.wanted):
            return notes
        self._count(notes)
        return None

    def _count(self, notes: Captured) -> None:
        for name, note in notes.items():
            self._partly[name] += self.wanted[name].tokens(note)

    def keep(self, notes: Captured) -> None:
        """Keep the notes of a decode step. Only the last step needs attention keys: the cache's hold those of all."""
        if self.kept and "attention" in notes:
            _pass_keys(self.kept[-1], notes)
        self.kept.append(notes)

    @property
    def bytes_a_step(self) -> int:
        """Bytes of the notes of the newest step kept, attention keys left aside: the cache holds them anyway."""
        notes = self.kept[-1].values() if self.kept else ()
        return sum(each.nbytes if isinstance(each, torch.Tensor) else each.nbytes_of_tokens for each in notes)

    def forget(self, steps: int) -> None:
        """Drop what was kept of steps beyond so many: of one that broke off."""
        if 0 < steps < len(self.kept) and "attention" in self.kept[steps]:
            _pass_keys(self.kept[steps], self.kept[steps - 1])
        del self.kept[steps:]

    def read(self, came: Sequence[Captured], batch: int, width: int) -> Captured | None:
        """Notes of one pass, or of steps that follow one another, as probes read them: [batch, position, ...].

        All on the device that the part ran on. None unless each is for all of `batch` sequences of `width` columns.
        """
        try:
            read = {name: form.read([each[name] for each in came], batch) for name, form in self.wanted.items()}
        except RuntimeError:  # the steps differ in shape, or do not divide into sequences
            read = {}
        if not read or any(note.shape[:2] != (batch, width) for note in read.values()):
            for notes in came:
                self._count(notes)
            return None
        self._complete += batch * width
        # In a split model the stream still comes from the device of the layer before.
        device = min(read.items(), key=lambda item: item[0] == "stream")[1].device
        return {name: note.to(device) if isinstance(note, torch.Tensor) else note for name, note in read.items()}

    def silent(self, columns: int) -> list[str]:
        """A line for each note that did not come, or came for other than `columns` tokens."""
        fired = {name: self._complete + self._partly[name] for name in sorted(self.wanted)}
        return [f"  {self._site(name)}: {n} of {columns} tokens" for name, n in fired.items() if n != columns]

    def _site(self, name: str) -> str:
        """A note in the words of sites."""
        words = {
            "stream": f"residual, before the {self.part}",
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
        return f"layers.{self.layer}.{words.get(name, name)}"


def _seen_by_steps(calls: list[AttentionCall]) -> torch.Tensor:
    """What the queries of decode steps may look at: of a step that no edit changed, all, as far as keys are real."""
    columns, seen = calls[-1].key.shape[2], []
    heads = max(1 if call.seen is None else call.seen.shape[1] for call in calls)
    for call in calls:
        shape = (call.query.shape[0], heads, call.query.shape[2], -1)
        own = call.query.new_ones(1, 1, 1, columns, dtype=torch.bool) if call.seen is None else call.seen
        seen.append(torch.nn.functional.pad(own, (0, columns - own.shape[3])).expand(shape))
    return torch.cat(seen, dim=2)


def _pass_keys(giver: Captured, taker: Captured) -> None:
    one: Any = giver["attention"]
    other: Any = taker["attention"]
    one.key, other.key = None, one.key if other.key is None else other.key
    one.value, other.value = None, one.value if other.value is None else other.value
