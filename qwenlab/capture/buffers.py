"""Buffers for captured tensors, one per layer part."""

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
    """One call of the attention function by one layer, or consecutive decode steps joined into one call.

    query    [batch, head, position, channel], rotated and normalised
    key      [batch, key head, past + position, channel]: all keys of the cache, rotated and normalised
    scaling  factor on the scores
    value    [batch, key head, past + position, channel]; only for layers whose attention map a probe measures
    visible  bool [batch, 1 or head, position, past + position]: which keys each query may attend to; only where an
             intervention changed that
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    value: torch.Tensor | None = None
    visible: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[batch, position]"""
        return self.query.shape[0], self.query.shape[2]

    @property
    def device(self) -> torch.device:
        """Device that the layer runs on."""
        return self.query.device

    @property
    def nbytes_of_tokens(self) -> int:
        """Bytes that grow with the number of tokens."""
        return self.query.nbytes + (0 if self.visible is None else self.visible.nbytes)

    @staticmethod
    def joined(calls: list[AttentionCall]) -> AttentionCall:
        """Join consecutive decode steps; the last step's keys and values include those of all steps."""
        last, query = calls[-1], torch.cat([call.query for call in calls], dim=2)
        visible = None if all(call.visible is None for call in calls) else _joined_masks(calls)
        return AttentionCall(query, last.key, last.scaling, last.value, visible)


CapturedValue = torch.Tensor | DeltaRuleCall | AttentionCall
Captured = dict[str, CapturedValue]


@dataclass(frozen=True)
class CaptureLayout:
    """Layout of a captured tensor; it is reshaped only when it is read, since a decode step has no time for it.

    rows   rows per token where sequence and position share one axis; 0 where they are two axes
    shape  shape that the last axis is split into
    index  index to select from the second-to-last axis after the split; None to keep all
    """

    rows: int = 0
    shape: tuple[int, ...] = ()
    index: int | None = None

    def count_tokens(self, value: CapturedValue) -> int:
        """Return the number of tokens of a captured value."""
        return value.shape[0] // self.rows if self.rows else value.shape[0] * value.shape[1]

    def read(self, values: Sequence[Any], batch: int) -> CapturedValue:
        """Join the values of consecutive steps along positions: [batch, position, ...]."""
        if not isinstance(values[0], torch.Tensor):
            return values[0] if len(values) == 1 else type(values[0]).joined(list(values))
        if self.rows and len(values) > 1:  # decode steps: [batch * rows, ...] each
            joined = torch.stack(list(values)).unflatten(1, (batch, -1)).transpose(0, 1)
            joined = joined if self.rows > 1 else joined[:, :, 0]
        elif self.rows:
            rows = (self.rows,) if self.rows > 1 else ()
            joined = values[0].reshape(batch, -1, *rows, *values[0].shape[1:])
        else:
            joined = values[0] if len(values) == 1 else torch.cat(list(values), dim=1)
        joined = joined.unflatten(-1, self.shape) if self.shape else joined
        return joined if self.index is None else joined[..., self.index, :]


WHOLE, FLAT = CaptureLayout(), CaptureLayout(rows=1)


@dataclass(eq=False)
class CaptureBuffer:
    """Buffer for the captured values of one part of one layer.

    wanted    names of the values that some probe reads, with the layout of each
    readers   the probes that read them
    captured  values of the current forward pass
    steps     values of decode steps that are not yet reduced
    """

    layer: int
    part: Part
    wanted: dict[str, CaptureLayout] = field(default_factory=dict)
    readers: list[Any] = field(default_factory=list)
    captured: Captured = field(default_factory=dict)
    steps: list[Captured] = field(default_factory=list)
    _complete: int = 0
    _incomplete: Counter[str] = field(default_factory=Counter)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Store a value of the current forward pass, without its graph."""
        self.captured[name] = constant(value)

    def collect(self) -> Captured | None:
        """Empty the buffer and return its values; None if one is missing (the others are only counted)."""
        captured, self.captured = self.captured, {}
        if len(captured) == len(self.wanted):
            return captured
        self._count(captured)
        return None

    def _count(self, captured: Captured) -> None:
        for name, value in captured.items():
            self._incomplete[name] += self.wanted[name].count_tokens(value)

    def add_step(self, captured: Captured) -> None:
        """Store the values of a decode step. Only the last step stores attention keys, which include earlier ones."""
        if self.steps and "attention" in captured:
            _move_keys(self.steps[-1], captured)
        self.steps.append(captured)

    @property
    def bytes_per_step(self) -> int:
        """Bytes of the newest decode step, without attention keys, which the cache stores anyway."""
        values = self.steps[-1].values() if self.steps else ()
        return sum(value.nbytes if isinstance(value, torch.Tensor) else value.nbytes_of_tokens for value in values)

    def truncate(self, steps: int) -> None:
        """Drop decode steps beyond this number: those of a forward pass that raised."""
        if 0 < steps < len(self.steps) and "attention" in self.steps[steps]:
            _move_keys(self.steps[steps], self.steps[steps - 1])
        del self.steps[steps:]

    def read(self, passes: Sequence[Captured], batch: int, width: int) -> Captured | None:
        """Return the values of one pass, or of consecutive decode steps, as [batch, position, ...].

        All are on the device that the part ran on. None unless each value covers `batch` sequences of `width` columns.
        """
        try:
            read = {name: layout.read([each[name] for each in passes], batch) for name, layout in self.wanted.items()}
        except RuntimeError:  # the steps differ in shape, or do not divide into sequences
            read = {}
        if not read or any(value.shape[:2] != (batch, width) for value in read.values()):
            for captured in passes:
                self._count(captured)
            return None
        self._complete += batch * width
        # In a split model the stream still comes from the device of the layer before.
        device = min(read.items(), key=lambda item: item[0] == "stream")[1].device
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in read.items()}

    def silent(self, columns: int) -> list[str]:
        """Return a line for each value that was not captured for exactly `columns` tokens."""
        fired = {name: self._complete + self._incomplete[name] for name in sorted(self.wanted)}
        return [f"  {self._site(name)}: {n} of {columns} tokens" for name, n in fired.items() if n != columns]

    def _site(self, name: str) -> str:
        """Return the site name of a captured value."""
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


def _joined_masks(calls: list[AttentionCall]) -> torch.Tensor:
    """Join the masks of decode steps; a step that no intervention changed sees all keys up to its own."""
    columns, visible = calls[-1].key.shape[2], []
    heads = max(1 if call.visible is None else call.visible.shape[1] for call in calls)
    for call in calls:
        shape = (call.query.shape[0], heads, call.query.shape[2], -1)
        own = call.query.new_ones(1, 1, 1, columns, dtype=torch.bool) if call.visible is None else call.visible
        visible.append(torch.nn.functional.pad(own, (0, columns - own.shape[3])).expand(shape))
    return torch.cat(visible, dim=2)


def _move_keys(source: Captured, target: Captured) -> None:
    """Move attention keys and values from one step to another, unless that one has its own."""
    one: Any = source["attention"]
    other: Any = target["attention"]
    one.key, other.key = None, one.key if other.key is None else other.key
    one.value, other.value = None, one.value if other.value is None else other.value
