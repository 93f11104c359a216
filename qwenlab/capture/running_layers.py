"""Track which layer is running, and which threads may run the model of a `watch` or `intervene` block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import QwenlabError

_running = threading.local()


def running_mixer(*_: Any) -> nn.Module | None:
    """Return the mixer that the current thread is running, of the layers that are `followed`; else None."""
    mixer: nn.Module | None = getattr(_running, "mixer", None)
    return mixer


@contextmanager
def followed(decoder: Decoder, layer: int) -> Iterator[None]:
    """Context manager in which `running_mixer` knows a layer."""

    def run(mixer: nn.Module | None, *_: Any) -> None:
        _running.mixer = mixer

    mixer, end = decoder.mixer(layer), partial(run, None)
    reset = outputs(decoder.module, before=end)  # a pass that raised has left its layer
    with reset, outputs(mixer, end, before=partial(run, mixer)):
        yield


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
