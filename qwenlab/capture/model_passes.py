"""Follow the forward passes of a model inside a `watch` or `intervene` block: their sequences, threads and ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import get_ident
from typing import Any

from transformers.cache_utils import Cache

from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.capture.lanes import PlacedByCalls, Placement, current_lane
from qwenlab.capture.running_layers import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument, NoForwardPass

Resume = Callable[[], None]
"""Goes on with a pass that was suspended."""


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
        self._turns: Placement | None = None  # suspends and resumes it, if it is one of a lane

    def follow(
        self,
        hooks: ExitStack,
        threads: BlockThreads,
        *,
        begin: Callable[[tuple[Any, ...], dict[str, Any]], ForwardPass],
        end: Callable[[ForwardPass, Cache | None], None],
        abort: Callable[[], None],
        suspend: Callable[[], Resume],
    ) -> None:
        """Call these functions for every pass, until `hooks` closes.

        begin    before the layers run: opens the pass with `tracker.open`
        end      after they ran, with the cache of their state
        abort    instead, if the pass raised after it began
        suspend  between two layers, if passes of other lanes take their turns; called only for blocks around all lanes
        """
        own = current_lane.get()

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            lane = current_lane.get()
            if lane is own or lane is None:
                self._current, self._thread = begin(args, kwargs), get_ident()
                return
            if lane.first:
                raise BadArgument(
                    f"A Branch runs the layers from {lane.first} on, so a block around all calls cannot follow its "
                    "pass.\nEnter watch or intervene inside the calls that need it."
                )
            self._current, self._thread = begin(args, kwargs), get_ident()
            self._turns = self._taking_turns(suspend)
            lane.add(self._turns)

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
        if self._turns is not None and (lane := current_lane.get()) is not None:
            lane.discard(self._turns)
            self._turns = None
        return forward_pass

    def _taking_turns(self, suspend: Callable[[], Resume]) -> Placement:
        """Return what suspends the current pass at the end of its lane's turn, and resumes it at the next."""
        resumes: list[Resume] = []
        return PlacedByCalls(lambda: resumes.pop()(), lambda: resumes.append(self._suspended(suspend)))

    def _suspended(self, suspend: Callable[[], Resume]) -> Resume:
        of_block, of_tracker = suspend(), self.tracker.suspend()
        current, thread, turns = self._current, self._thread, self._turns
        self._current = self._turns = None

        def resume() -> None:
            self._current, self._thread, self._turns = current, thread, turns
            of_tracker()
            of_block()

        return resume
