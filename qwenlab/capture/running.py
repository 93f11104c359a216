"""Which layer of a model is running, and which threads may run the model of a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from qwenlab.errors import QwenlabError

Layer = TypeVar("Layer")


class RunningLayer(Generic[Layer]):
    """The layer that is running, as the thread that runs it sees it; other threads see None.

    Layers call their kernels through globals of a module, which models in other threads call at the same time.
    """

    def __init__(self) -> None:
        self._layer: Layer | None = None
        self._thread = 0

    def begin(self, layer: Layer) -> None:
        """The current thread is about to run this layer."""
        self._thread, self._layer = get_ident(), layer

    def end(self) -> None:
        """No layer is running any more."""
        self._layer = None

    @property
    def layer(self) -> Layer | None:
        """The layer that the current thread runs; None where it runs none."""
        return self._layer if self._thread == get_ident() else None


_blocks: WeakKeyDictionary[nn.Module, list[threading.Thread]] = WeakKeyDictionary()
"""The threads that entered the blocks in force, by stack of layers."""

_entering = threading.Lock()


class BlockThreads:
    """Lets one thread at a time run the model of a `watch` or `edit` block, and none that has no part in the block.

    Those that may run it are the thread that entered the block and threads that were started since.

    verb   "watches" or "intervenes on", for the message
    error  what is raised
    """

    def __init__(self, stack: nn.Module, verb: str, error: type[QwenlabError]) -> None:
        self._stack, self._verb, self._error = stack, verb, error
        self._running = threading.RLock()
        self._strangers: WeakSet[threading.Thread] = WeakSet()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """For the length of the block. Raises where another thread's block on this model is in force."""
        own = threading.current_thread()
        with _entering:
            held = _blocks.setdefault(self._stack, [])
            if other := next((thread for thread in held if thread is not own), None):
                raise self._error(
                    f"{type(self._stack).__name__} is already under a block of thread {other.name!r}, and "
                    f"{own.name!r} began another one.\n{_ADVICE}"
                )
            held.append(own)
        self._strangers = WeakSet(thread for thread in threading.enumerate() if thread is not own)
        try:
            yield
        finally:
            with _entering:
                held.remove(own)

    def run(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass of the model. Raises where the current thread may not, or another one is running it."""
        thread = threading.current_thread()
        if thread in self._strangers or not self._running.acquire(blocking=False):
            raise self._error(
                f"Thread {thread.name!r} runs a {type(self._stack).__name__} that a block of another thread "
                f"{self._verb}: the passes of both would be taken for one.\n{_ADVICE}"
            )
        try:
            return run(*args, **kwargs)
        finally:
            self._running.release()


_ADVICE = (
    "Open the checkpoint once per thread, enter the block in the thread that runs the model, or start that thread "
    "inside the block."
)
