"""`watch`: probes on a plain transformers model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from qwenlab.capture.active import active_interventions, replaced_by
from qwenlab.capture.forward_pass import ForwardPass, Label
from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.hooks import CaptureHooks
from qwenlab.capture.provenance import facts_of
from qwenlab.capture.running import BlockThreads
from qwenlab.capture.sequences import SequenceTracker, cache_among
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import decoder_of, module_of
from qwenlab.checkpoint.fused_kernels import running_on_cpu
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import BadArgument, CannotWatch, NothingRead, ProbeInUse, SilentSite
from qwenlab.probes.base import Probe
from qwenlab.probes.deltanet import DeltaNet
from qwenlab.probes.dispatch import Dispatcher
from qwenlab.probes.maps.implicit import ImplicitAttention
from qwenlab.probes.maps.softmax import SoftmaxAttention
from qwenlab.probes.states.base import StateProbe
from qwenlab.probes.timing.stopwatch import Stopwatch
from qwenlab.probes.timing.timing import Timing
from qwenlab.record.recording import Recording


def watch(model: nn.Module | Any, *probes: Probe) -> WatchSession:
    """Watch a model while a `with` block runs: `with watch(model, DeltaNet(), Routing()) as seen: model(**inputs)`.

    The model is used as it is: forward, `generate`, training steps, split over devices, with any kernel. Not one logit
    changes, and nothing is left behind, also when the block raises.

    The 2-D `attention_mask` of 0 and 1 tells padding, which is left out. Sequences are followed from call to call by
    their cache, so the same tokens give the same sums however they are fed. A cache that was begun outside the block,
    or copied, holds new sequences; of one that was cropped, the tokens before are forgotten. A row of a batched
    `generate` that ended while others go on is filled with padding, which is left out. The end tokens are those of the
    call, or of the model's generation_config; ends by stop_strings or stopping_criteria are refused in a batch. Beam
    search reorders rows within the cache, which cannot be followed.

    model   a transformers model of a known family, anything that contains one, or a Checkpoint
    probes  each one reads what it is named for; a probe is emptied when its block begins

    One thread at a time may run the model: the one that enters the block, or threads started inside it.

    Raises NothingRead when the block ended without a forward pass of this model, and SilentSite when something that was
    to be read did not fire for every token the model read. A forward pass raises UnreadableMask for a mask or positions
    that do not separate text from padding and one sequence from the next, and CannotWatch in a thread of another block.
    """
    return WatchSession(model, probes)


class WatchSession:
    """What is being watched, and what was seen: a context manager that `watch` makes."""

    def __init__(self, model: nn.Module | Any, probes: Sequence[Probe]) -> None:
        _check(probes)
        self.model, self.probes = model, tuple(probes)
        self.live = False
        self._module = module_of(model)
        self._decoder = decoder_of(self._module)
        self._prepare()

    def __enter__(self) -> WatchSession:
        require_loaded(self._module)
        self._claim()
        try:
            for probe in self.probes:
                probe.start(self._decoder)
            self._prepare()
            self._place_hooks()
        except BaseException:
            self._hooks.close()
            self._end_probes(whole=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        whole = False
        try:
            self._drop_what_broke_off()
            self._delivery.flush()
            if kind is None:
                self._reader.checks.settle()
                self._require_all_fired()
                for probe in self.probes:
                    probe.check()
                whole = True
        finally:
            self._end_probes(whole)

    def _end_probes(self, whole: bool) -> None:
        self.live = False
        for probe in self.probes:
            probe.end(whole)

    @contextmanager
    def label(self, names: Label) -> Iterator[None]:
        """Call tokens read in this block by a name (domain, token class): one name, one a sequence, or one a token."""
        _check_label(names)
        before, self._reader.label = self._reader.label, names
        try:
            yield
        finally:
            self._reader.label = before

    def recording(self) -> Recording:
        """What was seen so far, as a Recording; within the block, or after it."""
        if not self._reader.forwards:
            raise NothingRead(self._nothing_read())
        if moved := [type(probe).__name__ for probe in self.probes if probe.watch is not self]:
            raise ProbeInUse(
                f"{', '.join(moved)} served another watch since, and no longer holds what this one saw.\n"
                "Take the recording before, or give each watch probes of its own."
            )
        self._delivery.flush()
        self._reader.checks.settle()
        datasets = {probe.name: probe.dataset(self._reader.labels) for probe in self.probes}
        return Recording(datasets, self.facts())

    def facts(self) -> dict[str, Any]:
        """Where what was seen so far came from: the root attrs of its recording."""
        return facts_of(self.model, self._decoder, self._reader, tuple(self._interventions))

    def _claim(self) -> None:
        """Take the probes: each serves one watch at a time."""
        if busy := [type(probe).__name__ for probe in self.probes if probe.watch is not None and probe.watch.live]:
            raise ProbeInUse(
                f"{', '.join(busy)} serves a watch whose block has not ended.\nGive each watch probes of its own."
            )
        self.live = True
        for probe in self.probes:
            probe.watch = self

    def _prepare(self) -> None:
        timing = next((probe for probe in self.probes if isinstance(probe, Timing)), None)
        self._stopwatch = None if timing is None else Stopwatch(timing)
        self._hooks = ExitStack()
        self._generate = GenerateCalls(self._module, self._decoder.module)
        self._reader = SequenceTracker(self._decoder.module, self._generate)
        timed = self._stopwatch.leave_out if self._stopwatch else lambda work: work()
        self._delivery = Dispatcher(self.probes, self._reader.read, timed)
        self._taps = CaptureHooks(self._decoder, self._delivery.take)
        self._pass: ForwardPass | None = None
        self._interventions: dict[str, None] = {}  # those in force in any pass
        self._unrolled: dict[str, tuple[int, ...]] = {}  # layers of which a probe works the delta rule out again

    def _place_hooks(self) -> None:
        """The stopwatch stands around the layers outside the taps, and around their parts inside."""
        for probe in self.probes:
            if isinstance(probe, DeltaNet):
                asked = {layer: probe.heads_asked(layer) for layer in probe.layers}
                self._taps.rule.heads = {layer: heads for layer, heads in asked.items() if len(heads)}
                self._unrolled[type(probe).__name__] = tuple(self._taps.rule.heads)
            elif isinstance(probe, ImplicitAttention):
                self._taps.rule.mapped = dict.fromkeys(probe.layers, torch.tensor(probe.heads))
                self._unrolled[type(probe).__name__] = probe.layers
            elif isinstance(probe, SoftmaxAttention):
                self._taps.valued = probe.layers
            elif isinstance(probe, StateProbe):
                self._taps.rule.stated |= set(probe.layers)
                self._unrolled[type(probe).__name__] = probe.layers
        self._hooks.enter_context(running_on_cpu(self._decoder.family))
        if self._stopwatch is not None:
            self._stopwatch.outer(self._decoder, self._hooks)
        self._taps.place(self._delivery.inboxes, self._hooks)
        if self._stopwatch is not None:
            self._stopwatch.inner(self._decoder, self._hooks)
        self._generate.listen(self._hooks)
        self._reader.embedded.listen(self._decoder.module.get_input_embeddings(), self._hooks)
        threads = BlockThreads(self._decoder.module, "watches", CannotWatch)
        self._hooks.enter_context(threads.entered())
        self._hooks.enter_context(outputs(self._decoder.module, self._after, before=self._before, around=threads.run))

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._drop_what_broke_off()
        self._refuse_another_rule()
        if replaced_by(self._decoder.module, "states", range(len(self._decoder.layers))):
            self._delivery.flush()  # a step does not begin with the state that the one before it ended with
        passed = self._reader.open(args, kwargs)
        self._interventions |= dict.fromkeys(active_interventions(self._decoder.module))
        goes_on = self._delivery.begin(passed)
        self._taps.begin()
        self._taps.rule.states = "" if goes_on else "initial" if passed.is_decode else "both"
        if self._stopwatch is not None:
            self._stopwatch.start_model(passed)
        self._pass = passed

    def _after(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        passed, self._pass = self._pass, None
        if passed is None:
            return
        self._taps.end()
        cache = cache_among(args, kwargs, out)
        self._reader.close(cache)
        self._delivery.end()
        if cache is not None:
            for probe in self.probes:
                probe.look_at_cache(cache, passed)
        if self._stopwatch is not None:
            self._stopwatch.end_model()

    def _drop_what_broke_off(self) -> None:
        """A forward pass that raised has no end: what its layers left is dropped."""
        if self._pass is not None:
            self._delivery.broke_off()
            self._taps.end()
            self._pass = None

    def _refuse_another_rule(self) -> None:
        """Raise CannotWatch where a probe would work out a rule that does not run."""
        for probe, layers in self._unrolled.items():
            if edit := replaced_by(self._decoder.module, "rule", layers):
                raise CannotWatch(
                    f"{probe} works the delta rule out again, and under {edit} another rule runs: it would show what "
                    f"is not there.\nLeave {probe} out, or name layers that are not edited"
                    + ("; prediction_heads=0 reads gates and keys alone." if probe == DeltaNet.__name__ else ".")
                )

    def _nothing_read(self) -> str:
        return (
            f"The watched {type(self._decoder.module).__name__} ran no forward pass inside the `with` block.\n"
            "Call the very model that was given to watch (or one that contains it) inside the block."
        )

    def _require_all_fired(self) -> None:
        if not self._reader.forwards:
            raise NothingRead(self._nothing_read())
        if silent := self._delivery.silent(self._reader.columns):
            shown = silent[:8] + ([f"  and {len(silent) - 8} more"] if len(silent) > 8 else [])
            raise SilentSite(
                f"{len(silent)} watched sites did not fire for every token that the model read:\n"
                + "\n".join(shown)
                + "\nA fused whole-layer kernel, a compiled layer or a layer that was skipped hides them: "
                "turn it off for this run, or leave these layers out with `layers=`."
            )


def _check(probes: Sequence[Any]) -> None:
    """Raise BadArgument unless these are instances of probes, one of a kind."""
    if not probes or not all(isinstance(probe, Probe) for probe in probes):
        found = ", ".join(getattr(probe, "__name__", type(probe).__name__) for probe in probes) or "none"
        raise BadArgument(
            f"watch(model, *probes) takes instances of probes; got {found}.\n"
            "Write for example watch(model, DeltaNet(), Attention())."
        )
    names = [type(probe).__name__ for probe in probes]
    if len({probe.name for probe in probes}) < len(probes):
        raise BadArgument(f"watch got two probes of the same kind: {', '.join(names)}.\nGive each kind once.")


def _check_label(names: Any, depth: int = 0) -> None:
    """Raise BadArgument unless this is a string, or strings in a sequence, or in a sequence of sequences."""
    if isinstance(names, str):
        return
    if depth == 2 or not isinstance(names, Iterable):
        raise BadArgument(
            f"label: a name is a string, and {names!r} is a {type(names).__name__}.\n"
            "Give one name, one name a sequence, or one name a token."
        )
    for name in names:
        _check_label(name, depth + 1)
