"""`edit`: changes of what happens inside a plain transformers model for the length of a `with` block."""

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
from qwenlab.errors import BadArgument, SilentIntervention
from qwenlab.interventions.base import Intervention
from qwenlab.interventions.hits import HitCount
from qwenlab.interventions.module_sites import InterventionPoints
from qwenlab.interventions.pass_tracker import PassTracker


def intervene(model: nn.Module | Any, *edits: Intervention) -> InterventionSession:
    """Intervene on a model while a `with` block runs: `with intervene(model, Zero("layers.3.mixer")): ...`.

    The model is used as it is, in forward, `generate` and training steps; no weight is touched, and at the block's end,
    also one that raised or was interrupted, everything is as it was, bit for bit. Edits of one place act in the order
    given, those of an outer block first. A `watch` inside or around the block sees the edited pass, and its recording
    names the edits. A cache that was filled in the block keeps what the edits made of its tokens, also after it: each
    edit says what that is.

    model  a transformers model of a known family, anything that contains one, or a Checkpoint
    edits  zero, mean, resample, noise, scale, identity, patch; those of DeltaNet, attention and experts

    Raises UnknownSite, UnknownLayer, BadArgument or CannotIntervene where one does not fit the model: when the block
    begins, or by the first forward pass. At its end, NothingRead without a forward pass, and SilentIntervention
    when an edit was not reached by every pass, or never acted. A pass that raised does not count.
    """
    return InterventionSession(model, edits)


class InterventionSession:
    """A model under edits: a context manager that `edit` makes.

    fired  after the block, by edit: how often each of its places was reached, and how often it acted there
    """

    def __init__(self, model: nn.Module | Any, edits: Sequence[Intervention]) -> None:
        _check(edits)
        self.model, self.edits = model, tuple(edits)
        self._module = module_of(model)
        self._decoder = decoder_of(self._module)
        self.fired: dict[str, list[HitCount]] = {}
        self._hooks: ExitStack | None = None

    def __enter__(self) -> InterventionSession:
        if self._hooks is not None:
            raise BadArgument(
                "This edit's block has not ended.\nWrite intervene(model, ...) anew for a block inside it."
            )
        require_loaded(self._module)
        self._hooks, stack = ExitStack(), self._decoder.module
        places = InterventionPoints(self._decoder, self._hooks)
        try:
            self._hooks.enter_context(running_on_cpu(self._decoder.family))
            for each in self.edits:
                before = len(places.fired)
                each.place(places)
                self.fired[str(each)] = places.fired[before:]
            self._passes = PassTracker(places)
        except BaseException:
            self._leave()
            raise
        self._hooks.enter_context(listed_as_active(stack, [str(each) for each in self.edits]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if kind is None:
            self._require_all_fired()

    def _leave(self) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def _require_all_fired(self) -> None:
        self._passes.reader.checks.settle()
        self._passes.require_read("intervene")
        for name, places in self.fired.items():
            if missed := self._passes.missed(places):
                raise SilentIntervention(f"{name}: {missed}")
            if not any(each.acted for each in places):
                raise SilentIntervention(
                    f"{name} never acted: none of the tokens read was one that it changes.\n"
                    "Read a text that has such tokens, or give other positions."
                )


def _check(edits: Sequence[Any]) -> None:
    """Raise BadArgument unless these are edits, none of them twice."""
    if not edits or not all(isinstance(each, Intervention) for each in edits):
        found = ", ".join(getattr(each, "__name__", type(each).__name__) for each in edits) or "none"
        raise BadArgument(
            f"intervene(model, *interventions) takes interventions; got {found}.\n"
            'Write for example intervene(model, Zero("layers.3.mixer")).'
        )
    names = [str(each) for each in edits]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadArgument(f"edit got {twice[0]} twice.\nGive each edit once.")
