"""`intervene`: change the inside of a plain transformers model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from torch import nn

from qwenlab.capture.active import listed_as_active
from qwenlab.checkpoint.decoder import decoder_of, module_of
from qwenlab.checkpoint.fused_kernels import running_on_cpu
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import BadArgument, InterventionNotApplied
from qwenlab.interventions.base import Intervention
from qwenlab.interventions.points import HitCount, InterventionPoints


def intervene(model: nn.Module | Any, *interventions: Intervention) -> InterventionSession:
    """Intervene on a model while a `with` block runs: `with intervene(model, Zero("layers.3.mixer")): ...`.

    Use the model as before, in forward, `generate` and training steps. No weight is touched, and when the block ends,
    also by an exception or an interrupt, everything is as it was, bit for bit. Interventions at one point act in the
    given order, those of an outer block first. A `watch` inside or outside the block sees the changed pass, and its
    recording names the interventions. A cache that is filled in the block keeps its tokens as the interventions left
    them, also after the block; the docstring of each intervention says what the cache keeps.

    model          a transformers model of a known family, anything that contains one, or a Checkpoint
    interventions  Zero, Mean, Resample, Noise, Scale, Identity, Patch; those of DeltaNet, attention and experts

    Raises UnknownSite, UnknownLayer, BadArgument or CannotIntervene if one does not fit the model: when the block
    begins, or in the first forward pass. At the block's end, NoForwardPass without a forward pass, and
    InterventionNotApplied if an intervention was not reached by every pass, or never acted. A pass that raised does not
    count.
    """
    return InterventionSession(model, interventions)


class InterventionSession:
    """Context manager that `intervene` returns: a model under interventions.

    interventions  in the order in which they act
    hits           after the block, by intervention: the hit counts of its points
    """

    def __init__(self, model: nn.Module | Any, interventions: Sequence[Intervention]) -> None:
        _check(interventions)
        self.model, self.interventions = model, tuple(interventions)
        self._module = module_of(model)
        self._decoder = decoder_of(self._module)
        self.hits: dict[str, list[HitCount]] = {}
        self._hooks: ExitStack | None = None

    def __enter__(self) -> InterventionSession:
        if self._hooks is not None:
            raise BadArgument("This context manager is already active.\nCreate a new intervene(model, ...) to nest.")
        require_loaded(self._module)
        with ExitStack() as hooks:
            points = self._points = InterventionPoints(self._decoder, hooks)
            hooks.enter_context(running_on_cpu(self._decoder.family))
            for intervention in self.interventions:
                before = len(points.counts)
                intervention.place(points)
                self.hits[str(intervention)] = points.counts[before:]
            points.follow_passes()
            hooks.enter_context(listed_as_active(self._decoder.module, list(map(str, self.interventions))))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()
        if kind is None:
            self._require_hits()

    def _require_hits(self) -> None:
        passes = self._points.passes
        passes.tracker.checks.settle()
        passes.require_any("intervene")
        for name, counts in self.hits.items():
            if missed := self._points.missed(counts):
                raise InterventionNotApplied(f"{name}: {missed}")
            if not any(count.acted for count in counts):
                raise InterventionNotApplied(
                    f"{name} never acted: the model read none of the tokens that it changes.\n"
                    "Read a text that has such tokens, or give other positions."
                )


def _check(interventions: Sequence[Any]) -> None:
    """Raise BadArgument unless these are interventions, each only once."""
    if not interventions or not all(isinstance(item, Intervention) for item in interventions):
        found = ", ".join(getattr(item, "__name__", type(item).__name__) for item in interventions) or "none"
        raise BadArgument(
            f"intervene(model, *interventions) takes interventions; got {found}.\n"
            'Write for example intervene(model, Zero("layers.3.mixer")).'
        )
    names = list(map(str, interventions))
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadArgument(f"intervene got {repeated[0]} twice.\nGive each intervention once.")
