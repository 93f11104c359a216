"""Track which layer is running, and which threads may run the model of a `watch` or `intervene` block."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from qwenlab.capture.lanes import outside_lanes
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import QwenlabError


class RunningLayers:
    """Which DeltaNet layer of one model each thread is running.

    Layers call their kernels through globals of a module, which other layers, and models in other threads, call too.
    """

    def __init__(self) -> None:
        self._local, self._followers, self._hooks = threading.local(), Counter[int](), dict[int, ExitStack]()

    @property
    def layer(self) -> int | None:
        """The layer that the current thread is running; None if there is none."""
        layer: int | None = getattr(self._local, "layer", None)
        return layer

    @contextmanager
    def followed(self, decoder: Decoder, layer: int) -> Iterator[None]:
        """Context manager that follows a layer; all blocks on one model share the wrappers."""
        end = partial(self._set, None)
        with _entering:
            if not self._followers.total():  # a pass that raised has left its layer
                self._enter(-1, outputs(decoder.module, before=end))
            if not self._followers[layer]:
                self._enter(layer, outputs(decoder.mixer(layer), end, before=partial(self._set, layer)))
            self._followers[layer] += 1
        try:
            yield
        finally:
            with _entering:
                self._followers[layer] -= 1
                if not self._followers[layer]:
                    self._hooks.pop(layer).close()
                if not self._followers.total():
                    self._hooks.pop(-1).close()

    def _enter(self, key: int, hook: AbstractContextManager[None]) -> None:
        self._hooks[key] = ExitStack()
        with outside_lanes():  # blocks of several lanes may share it
            self._hooks[key].enter_context(hook)

    def _set(self, layer: int | None, *_: Any) -> None:
        self._local.layer = layer


_running: WeakKeyDictionary[nn.Module, RunningLayers] = WeakKeyDictionary()
"""By stack of layers."""


def running_layers(decoder: Decoder) -> RunningLayers:
    """Return the running layers of a model; only those are known that a block follows."""
    return _running.setdefault(decoder.module, RunningLayers())


_blocks: WeakKeyDictionary[nn.Module, list[threading.Thread]] = WeakKeyDictionary()
"""By stack of layers: the threads that entered the active blocks."""

_entering = threading.Lock()


class BlockThreads:
    """Restricts which threads run the model of a `watch` or `intervene` block: one at a time, and only its own.

    A block's own threads are the one that entered it and those that were started since.

    verb   "watches" or "intervenes on", for the message
    error  type of the error to raise
    """

    def __init__(self, stack: nn.Module, verb: str, error: type[QwenlabError]) -> None:
        self._stack, self._verb, self._error = stack, verb, error
        self._running = threading.RLock()
        self._outside: WeakSet[threading.Thread] = WeakSet()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Context manager for the block. Raises if another thread has an active block on this model."""
        own = threading.current_thread()
        with _entering:
            owners = _blocks.setdefault(self._stack, [])
            if other := next((thread for thread in owners if thread is not own), None):
                raise self._error(
                    f"Thread {own.name!r} enters a block on {type(self._stack).__name__}, but thread {other.name!r} "
                    f"has an active block on it.\n{_ADVICE}"
                )
            owners.append(own)
        self._outside = WeakSet(thread for thread in threading.enumerate() if thread is not own)
        try:
            yield
        finally:
            with _entering:
                owners.remove(own)

    def run(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass. Raises if the current thread is not one of the block's, or another one is running."""
        thread = threading.current_thread()
        if thread in self._outside or not self._running.acquire(blocking=False):
            raise self._error(
                f"Thread {thread.name!r} runs a {type(self._stack).__name__} that a block of another thread "
                f"{self._verb}; their passes would be mixed up.\n{_ADVICE}"
            )
        try:
            return run(*args, **kwargs)
        finally:
            self._running.release()


_ADVICE = (
    "Open the checkpoint once per thread, enter the block in the thread that runs the model, or start that thread "
    "inside the block."
)
