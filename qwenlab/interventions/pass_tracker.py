"""Follows the forward passes of a model in a block, so that its places know what is being read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.running import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.wrapping import outputs
from qwenlab.errors import CannotIntervene, NothingRead
from qwenlab.interventions.hits import HitCount
from qwenlab.interventions.module_sites import InterventionPoints


class PassTracker:
    """The forward passes of a model until its places are given up.

    calls     as in Reader; by default what fills rows that ended is changed as text is

    finished  how many ended; one that raised does not count, nor what it reached
    reader    what they read
    """

    def __init__(self, places: InterventionPoints, calls: GenerateCalls | None = None) -> None:
        self.places, self.finished = places, 0
        self.reader = SequenceTracker(places.decoder.module, calls)
        self._threads = BlockThreads(places.decoder.module, "edits", CannotIntervene)
        places.hooks.enter_context(self._threads.entered())
        places.hooks.enter_context(outputs(places.decoder.module, around=partial(self._threads.run, self._run)))

    def require_read(self, verb: str) -> None:
        """Raise NothingRead where no pass ended; `verb` is what the model was given to."""
        if not self.finished:
            stack = type(self.places.decoder.module).__name__
            raise NothingRead(
                f"{verb}: this {stack} ran no forward pass inside the `with` block.\n"
                f"Call the very model that was given to {verb} (or one that contains it) inside the block."
            )

    def missed(self, fired: Sequence[HitCount]) -> str:
        """What is to be said where passes did not reach some of these places; "" where all did."""
        silent = [each for each in fired if each.reached < self.finished]
        if not silent:
            return ""
        more = len(silent) - 1
        others = f", and {more} more {'place was' if more == 1 else 'places were'} missed" if more else ""
        return (
            f"{silent[0].where} was reached by {silent[0].reached} of {self.finished} forward passes{others}.\n"
            "A fused whole-layer kernel, a compiled layer or a layer that was skipped hides it: "
            "turn it off for this block."
        )

    def _run(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stack, fired = self.places.decoder.module, self.places.fired
        if stack.training and any(getattr(each, "gradient_checkpointing", False) for each in stack.modules()):
            raise CannotIntervene(
                "Gradient checkpointing runs the layers again after the forward pass, where edits no longer know what "
                "is read.\nTurn it off for this block: model.gradient_checkpointing_disable()."
            )
        before = [(each.reached, each.acted) for each in fired]
        self.places.begin(self.reader.read([self.reader.open(args, kwargs)]))
        try:
            result = run(*args, **kwargs)
        except BaseException:
            for each, (reached, acted) in zip(fired, before, strict=True):
                each.reached, each.acted = reached, acted
            raise
        finally:
            self.places.end()
        self.reader.close(cache_among(args, kwargs, result))
        self.finished += 1
        return result
