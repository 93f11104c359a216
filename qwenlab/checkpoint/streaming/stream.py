"""Keep few layers of a model in memory: bring a layer in before it runs, read the next one ahead, drop it behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event, RLock
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qwenlab.checkpoint.streaming.unit import Unit


@dataclass(frozen=True, eq=False)
class _Ahead:
    """A unit that is being read ahead in another thread."""

    unit: Unit
    values: Future[tuple[torch.Tensor, ...]]
    cancelled: Event


class WeightStream:
    """The layers of a model whose weights are read from their files as the model runs.

    layers      the weights of each layer
    head        the slices of the lm_head
    memory      the budget in bytes
    always      bytes that are in memory all the time
    bytes_read  from the files so far, without rows of the embedding
    """

    def __init__(self, layers: Sequence[Unit], head: Sequence[Unit], memory: int, always: int) -> None:
        self.layers, self.head, self.memory, self.always = tuple(layers), tuple(head), memory, always
        self.bytes_read = 0
        self._ahead: _Ahead | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="qwenlab-read-ahead")
        self._running = RLock()  # one thread at a time: the budget is that of the model

    @property
    def peak(self) -> int:
        """Bytes that weights take at most: what is always present, and one unit or two successive ones."""
        pairs = [*zip(self.layers, self.layers[1:], strict=False), *zip(self.head, self.head[1:], strict=False)]
        both = [one.nbytes + other.nbytes for one, other in pairs if self._fit(one, other)]
        return self.always + max(*both, *(unit.nbytes for unit in (*self.layers, *self.head)))

    @property
    def spare(self) -> int:
        """Bytes of the budget that weights never take: for the hidden states of texts that wait."""
        return self.memory - self.peak

    @property
    def files(self) -> list[Path]:
        """The weight files."""
        return sorted({shard.path for unit in (*self.layers, *self.head) for shard in unit.shards})

    @contextmanager
    def present(self, layer: int) -> Iterator[None]:
        """Context manager that keeps the weights of one layer in memory, while any number of texts run through it.

        The next layer is read ahead if the budget allows both. Blocks of one layer can be nested. Raises
        WeightsChanged if a file changed since the checkpoint was opened.
        """
        following = self.layers[layer + 1] if layer + 1 < len(self.layers) else None
        with self.holding(self.layers[layer], following):
            yield

    def head_present(self) -> AbstractContextManager[None]:
        """Context manager that keeps the lm_head in memory, if the budget allows it whole."""
        return self.holding(self.head[0]) if len(self.head) == 1 else nullcontext()

    @contextmanager
    def holding(self, unit: Unit, following: Unit | None = None) -> Iterator[None]:
        """Context manager that keeps a unit in memory, and reads the `following` one ahead if both fit."""
        with self._running:
            unit.depth += 1
            try:
                if unit.depth == 1:
                    self._bring(unit, following)
                yield
            except BaseException:
                self._discard_ahead()
                raise
            finally:
                unit.depth -= 1
                if not unit.depth:
                    unit.drop()

    def _bring(self, unit: Unit, following: Unit | None) -> None:
        unit.require_unchanged()
        if self._ahead is None or self._ahead.unit is not unit:
            self._discard_ahead()
            values = unit.fetch(Event())
        else:
            values = self._ahead.values.result()
            self._ahead = None
        self.bytes_read += unit.stored_bytes
        unit.attach(values)
        if following is not None and not following.depth and self._fit(unit, following):
            following.require_unchanged()
            cancelled = Event()
            self._ahead = _Ahead(following, self._reader.submit(following.fetch, cancelled), cancelled)

    def _fit(self, one: Unit, other: Unit) -> bool:
        return one.nbytes + other.nbytes <= self.memory - self.always

    def _discard_ahead(self) -> None:
        """Stop reading ahead, and drop what was read."""
        if (ahead := self._ahead) is not None:
            ahead.cancelled.set()
            ahead.values.exception()  # waits; an error of a unit that is not needed is dropped with it
            self._ahead = None
            ahead.unit.drop()


_streams: WeakKeyDictionary[nn.Module, WeightStream] = WeakKeyDictionary()
"""By stack of layers."""


def set_stream(stack: nn.Module, stream: WeightStream) -> None:
    """Register the stream of a stack of layers."""
    _streams[stack] = stream


def streamed_layers(model: nn.Module) -> WeightStream | None:
    """Return the stream of a model opened with `memory=`, whose `present(layer)` keeps a layer in memory; else None.

    model  any module that contains the stack of layers
    """
    return next((_streams[module] for module in model.modules() if module in _streams), None)
