"""Follows the forward passes of a model, so that its intervention points know which tokens are being read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.running_layers import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.wrapping import outputs
from qwenlab.errors import CannotIntervene, NoForwardPass
from qwenlab.interventions.points import HitCount, InterventionPoints


class PassTracker:
    """The forward passes of a model until the hooks of its intervention points close.

    calls     as in `SequenceTracker`; by default the fillers of rows that ended are changed as text is

    finished  number of passes that ended; one that raised does not count, nor do its hits
    reader    the sequences that the passes read
    """

    def __init__(self, points: InterventionPoints, calls: GenerateCalls | None = None) -> None:
        self.points, self.finished = points, 0
        self.reader = SequenceTracker(points.decoder.module, calls)
        self.reader.refuse_reordering(points.hooks)
        self._threads = BlockThreads(points.decoder.module, "intervenes on", CannotIntervene)
        points.hooks.enter_context(self._threads.entered())
        points.hooks.enter_context(outputs(points.decoder.module, around=partial(self._threads.run, self._run)))

    def require_read(self, function: str) -> None:
        """Raise NoForwardPass where no pass ended; `function` is the one that the user called."""
        if not self.finished:
            stack = type(self.points.decoder.module).__name__
            raise NoForwardPass(
                f"{function}: this {stack} ran no forward pass inside the `with` block.\n"
                f"Inside the block, call the same model object that you gave to {function}, or one that contains it."
            )

    def missed(self, counts: Sequence[HitCount]) -> str:
        """A message about the points that some pass did not reach; "" if every pass reached all of them."""
        silent = [count for count in counts if count.reached < self.finished]
        if not silent:
            return ""
        more = len(silent) - 1
        others = f", and {more} more {'point was' if more == 1 else 'points were'} missed" if more else ""
        return (
            f"{silent[0].where} was reached by {silent[0].reached} of {self.finished} forward passes{others}.\n"
            "A fused whole-layer kernel, a compiled layer or a skipped layer hides it: turn that off for this block."
        )

    def _run(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stack, counts = self.points.decoder.module, self.points.counts
        if stack.training and any(getattr(module, "gradient_checkpointing", False) for module in stack.modules()):
            raise CannotIntervene(
                "Gradient checkpointing runs the layers again after the forward pass, where interventions do not know "
                "which tokens they read.\nTurn it off for this block: model.gradient_checkpointing_disable()."
            )
        before = [(count.reached, count.acted) for count in counts]
        self.points.begin(self.reader.read([self.reader.open(args, kwargs)]))
        try:
            result = run(*args, **kwargs)
        except BaseException:
            for count, (reached, acted) in zip(counts, before, strict=True):
                count.reached, count.acted = reached, acted
            raise
        finally:
            self.points.end()
        self.reader.close(cache_among(args, kwargs, result))
        self.finished += 1
        return result
