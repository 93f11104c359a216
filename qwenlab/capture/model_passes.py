"""Follow the forward passes of a model inside a `watch` or `intervene` block: their sequences, threads and ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import get_ident
from typing import Any

from transformers.cache_utils import Cache

from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.running_layers import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import NoForwardPass


class ModelPasses:
    """The forward passes of one model inside a block.

    tracker   the sequences that they read
    finished  number of passes that ended; one that raised does not count
    """

    def __init__(self, decoder: Decoder, tracker: SequenceTracker) -> None:
        self.tracker, self.finished = tracker, 0
        self._stack = decoder.module
        self._current: ForwardPass | None = None
        self._thread = 0  # the one that runs it; another may be in a pass that began before the block

    def follow(
        self,
        hooks: ExitStack,
        threads: BlockThreads,
        *,
        begin: Callable[[tuple[Any, ...], dict[str, Any]], ForwardPass],
        end: Callable[[ForwardPass, Cache | None], None],
        abort: Callable[[], None],
    ) -> None:
        """Call these functions for every pass, until `hooks` closes.

        begin  before the layers run: opens the pass with `tracker.open`
        end    after they ran, with the cache of their state
        abort  instead, if the pass raised after it began
        """

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._current, self._thread = begin(args, kwargs), get_ident()

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if (forward_pass := self._take()) is not None:
                cache = cache_among(args, kwargs, out)
                self.tracker.close(cache)
                self.finished += 1
                end(forward_pass, cache)

        def run(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return model(*args, **kwargs)
            except BaseException:
                if self._take() is not None:
                    abort()
                raise

        self.tracker.caches.listen(hooks)
        hooks.enter_context(threads.entered())
        hooks.enter_context(outputs(self._stack, after, before=before, around=partial(threads.run, run)))

    def require_any(self, function: str) -> None:
        """Raise NoForwardPass if no pass ended; `function` is the one that the user called."""
        if not self.finished:
            raise NoForwardPass(
                f"{function}: this {type(self._stack).__name__} ran no forward pass inside the `with` block.\n"
                f"Inside the block, call the same model object that you gave to {function}, or one that contains it."
            )

    def _take(self) -> ForwardPass | None:
        """Return the pass that the current thread runs, which is then over."""
        if self._thread != get_ident():
            return None
        forward_pass, self._current = self._current, None
        return forward_pass
