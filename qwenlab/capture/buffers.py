"""Buffers for captured tensors, one per layer part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwenlab.capture.attention import AttentionCall
from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.capture.layout import PLAIN, ValueLayout
from qwenlab.checkpoint.families import ATTENTION, DELTANET

Part = str
PARTS: tuple[Part, ...] = ("mixer", "mlp")

DETAILS = {
    "mixer.state": "mixer.rule",
    "mixer.rule.query": "mixer.rule",
    "mixer.rule.out": "mixer.rule",
    "mixer.attention.value": "mixer.attention",
}
"""Values that a call has only where a probe names them, and the call."""

_OF_RULE: dict[str, Callable[[Any], torch.Tensor]] = {
    "mixer.query": lambda call: call.query,
    "mixer.key": lambda call: call.key,
    "mixer.value": lambda call: call.value,
    "mixer.beta": lambda call: call.beta,
    "mixer.decay": lambda call: call.g.exp(),
}
_OF_ATTENTION: dict[str, Callable[[Any], torch.Tensor]] = {"mixer.query": lambda call: call.query.transpose(1, 2)}
OF_CALLS = {
    DELTANET: {name: ("mixer.rule", read) for name, read in _OF_RULE.items()},
    ATTENTION: {name: ("mixer.attention", read) for name, read in _OF_ATTENTION.items()},
}
"""By kind of mixer, the sites whose values are those of a call: the call, and how to read it."""

CapturedValue = torch.Tensor | DeltaRuleCall | AttentionCall
Captured = dict[str, CapturedValue]


@dataclass(eq=False)
class CaptureBuffer:
    """Buffer for the captured values of one part of one layer.

    wanted       names of the values that some probe reads, with the layout of each
    complete     those of them that some probe reads for every token; the others only at the tokens that probes sample
    details      names in `DETAILS` that some probe reads
    of_calls     names of values that are read from a call, and how: as in `OF_CALLS`
    state_heads  value heads whose states some probe reads
    readers      the probes that read them
    captured     values of the current forward pass
    ended        how often the part has run in it
    steps        values of decode steps that are not yet reduced; a step that no probe samples has the complete ones
    newest_keys  keys and values of the newest decode step, which include those of the steps before it
    """

    layer: int
    part: Part
    wanted: dict[str, ValueLayout] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    details: set[str] = field(default_factory=set)
    of_calls: dict[str, tuple[str, Callable[[Any], torch.Tensor]]] = field(default_factory=dict)
    state_heads: set[int] = field(default_factory=set)
    readers: list[Any] = field(default_factory=list)
    captured: Captured = field(default_factory=dict)
    ended: int = 0
    steps: list[Captured] = field(default_factory=list)
    newest_keys: tuple[torch.Tensor, torch.Tensor | None] | None = None
    _tokens_read: int = 0
    _tokens_missed: Counter[str] = field(default_factory=Counter)

    def want(self, name: str, kind: str, sampled: bool) -> None:
        """Add a name to those that are captured.

        kind     that of the layer's mixer
        sampled  whether the probe reads the value only at the tokens that it samples
        """
        if name in DETAILS:
            self.details.add(name)
            name = DETAILS[name]
        elif name in OF_CALLS[kind]:
            self.of_calls[name] = OF_CALLS[kind][name]
            if name == "mixer.query" and kind == DELTANET:
                self.details.add("mixer.rule.query")
            name, _ = self.of_calls[name]
        self.wanted.setdefault(name, PLAIN)
        if not sampled:
            self.complete.add(name)

    def collect(self, sampled: bool = True) -> Captured | None:
        """Empty the buffer and return its values; None if one is missing (the others are only counted).

        sampled  whether the pass has tokens that probes sample
        """
        captured, self.captured = self.captured, {}
        if len(captured) == len(self.wanted if sampled else self.complete):
            return captured
        self._count(captured)
        return None

    def _count(self, captured: Captured) -> None:
        for name, value in captured.items():
            self._tokens_missed[name] += self.wanted[name].count_tokens(value)

    def add_step(self, sampled: bool) -> None:
        """Store the values of a decode step that ended, unless the part ran more or less than once in it."""
        if self.ended != 1 or (captured := self.collect(sampled)) is None:
            return
        call: Any = captured.get("mixer.attention")
        if call is not None:
            self.newest_keys, call.key, call.value = (call.key, call.value), None, None
        self.steps.append(captured)

    @property
    def bytes_per_step(self) -> int:
        """Bytes of the newest decode step, without attention keys, which the cache stores anyway."""
        values = self.steps[-1].values() if self.steps else ()
        return sum(value.nbytes if isinstance(value, torch.Tensor) else value.nbytes_of_tokens for value in values)

    def read(self, passes: Sequence[Captured], batch: int, width: int) -> Captured | None:
        """Return the values of one pass, or of consecutive decode steps, as [batch, position, ...].

        All are on the device that the part ran on. None unless each value covers `batch` sequences of `width` columns,
        or of one column for each step that captured it.
        """
        values = {name: [each[name] for each in passes if name in each] for name in self.wanted}
        call: Any = values.get("mixer.attention", [None])[-1]
        if call is not None and call.key is None and self.newest_keys is not None:
            (call.key, call.value), self.newest_keys = self.newest_keys, None
        try:
            read = {name: layout.read(values[name], batch) for name, layout in self.wanted.items()}
        except RuntimeError:  # the steps differ in shape, or do not divide into sequences
            read = {}
        widths = {name: width * len(of_passes) // len(passes) for name, of_passes in values.items()}
        if not read or any(value.shape[:2] != (batch, widths[name]) for name, value in read.items()):
            for captured in passes:
                self._count(captured)
            return None
        self._tokens_read += batch * width
        # In a split model the stream still comes from the device of the layer before.
        device = min(read.items(), key=lambda item: item[0].endswith(".input"))[1].device
        for name, value in read.items():
            if value.device != device:
                read[name] = value.to(device)
        return read | {name: of(read[call]) for name, (call, of) in self.of_calls.items()}

    def silent(self, columns: int) -> list[str]:
        """Return a line for each value that was not captured for exactly `columns` tokens."""
        fired = {name: self._tokens_read + self._tokens_missed[name] for name in sorted(self.wanted)}
        return [f"  {self._site(name)}: {n} of {columns} tokens" for name, n in fired.items() if n != columns]

    def _site(self, name: str) -> str:
        """Return the site name of a captured value."""
        words = {
            "mixer.input": "residual, before the mixer",
            "mlp.input": "residual, before the mlp",
            "mixer.rule": "mixer.decay",
            "mixer.attention": "mixer.query",
            "shared_expert_gate": "shared_expert, its gate",
            "router.weights": "router, its weights",
            "router.chosen": "router, its choice",
        }
        return f"layers.{self.layer}.{words.get(name, name)}"


def constant(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its graph."""
    return tensor.detach() if tensor.requires_grad else tensor
