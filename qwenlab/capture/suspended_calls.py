"""A call of a model in a greenlet, which is suspended before each layer, and the tensors that it then keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from typing import Any, Generic, TypeVar, cast
from weakref import WeakValueDictionary

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from transformers.cache_utils import Cache

from qwenlab.capture.lanes import Lane, current_lane
from qwenlab.capture.waiting import WaitingTensors

T = TypeVar("T")


class SuspendableCall(Lane, Generic[T]):
    """A call that runs one forward pass of a model, in turns.

    at        index of the layer before which it waits, the number of layers before the final norm; -1 before the first
    hidden    its hidden state there
    origin    the hidden state with which a branch begins, until it has begun
    branches  the branches of this call, by their first layer
    """

    def __init__(self, call: Callable[[], T], first: int = 0) -> None:
        super().__init__(first)
        self.at, self._result = -1, cast(T, None)
        self.hidden: torch.Tensor | None = None
        self.origin: torch.Tensor | None = None
        self.branches = defaultdict[int, list[SuspendableCall[T]]](list)
        # By id, since tensors compare by value: outputs of the embedding and of layers, and other inputs of layers.
        self._outputs, self._inputs = WeakValueDictionary[int, torch.Tensor](), WeakValueDictionary[int, torch.Tensor]()
        self._greenlet = greenlet(call)
        context = copy_context()
        context.run(current_lane.set, self)
        self._greenlet.gr_context = context

    def resume(self, waiting: WaitingTensors) -> None:
        """Run it until it waits again, or ends. While it waits, `waiting` has its tensors."""
        waiting.take(self)
        self.hidden, self._greenlet.parent = None, getcurrent()
        result = self._greenlet.switch()
        if self._greenlet.dead:
            self._result = result
        else:
            waiting.put(self, list(self._outputs.values()), list(self._inputs.values()))

    def result(self, waiting: WaitingTensors) -> T:
        """Run the call to its end and return its result, which it then forgets."""
        if not self._greenlet.dead:
            self.resume(waiting)
        result, self._result = self._result, cast(T, None)
        return result

    def end(self) -> None:
        """Raise GreenletExit in the call, if it has begun and not ended, so that it leaves its blocks."""
        if self._greenlet:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(GreenletExit)

    def wait(self, hidden: torch.Tensor, arguments: Any) -> None:
        """Suspend the call before a layer that gets these arguments. Called in its greenlet."""
        self.hidden = hidden
        self._inputs.update({id(each): each for each in _tensors(arguments) if id(each) not in self._outputs})
        self.leave()
        scheduler = self._greenlet.parent
        assert scheduler is not None
        try:
            scheduler.switch()
        finally:
            self.enter()

    def owned(self, output: Any) -> Any:
        """Return the output of the embedding or of a layer as another tensor on its memory, which only the forward has.

        Whether somebody else keeps the output shows in the number of tensors on that memory.
        """
        if isinstance(output, torch.Tensor):
            output = output.detach()
            self._outputs[id(output)] = output
        return output


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in arguments, also in a cache."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Cache):
        yield from _tensors([vars(layer) for layer in value.layers])
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)
