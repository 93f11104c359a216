"""`watch`: run probes on a plain transformers model inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from qwenlab.capture.active import active_interventions, replaced_by
from qwenlab.capture.forward_pass import ForwardPass, Label
from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.hooks import CaptureHooks
from qwenlab.capture.lanes import placed
from qwenlab.capture.model_passes import ModelPasses, Resume
from qwenlab.capture.provenance import facts_of
from qwenlab.capture.running_layers import BlockThreads
from qwenlab.capture.sequences import SequenceTracker
from qwenlab.checkpoint.decoder import decoder_of, module_of
from qwenlab.checkpoint.fused_kernels import running_on_cpu
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import BadArgument, CannotWatch, ProbeInUse, SiteNotReached
from qwenlab.probes.base import Probe
from qwenlab.probes.deltanet import DeltaNet
from qwenlab.probes.dispatch import Dispatcher
from qwenlab.probes.timing.stopwatch import Stopwatch
from qwenlab.probes.timing.timing import Timing
from qwenlab.record.recording import Recording


def watch(model: nn.Module | Any, *probes: Probe) -> WatchSession:
    """Watch a model while a `with` block runs: `with watch(model, DeltaNet(), Routing()) as seen: model(**inputs)`.

    The model runs unchanged: forward, `generate`, training steps, split over devices, with any kernel. No logit
    changes, and no hook is left behind, also when the block raises.

    Padding, marked by the 2-D `attention_mask` of 0 and 1, is left out. Sequences are tracked from call to call by
    their cache, so the sums do not depend on how tokens are batched. A cache that was begun outside the block, or
    copied, has new sequences; for a cropped one, the tokens before the crop are forgotten. The tokens that a crop
    removes, such as rejected drafts, stay in all numbers; the attribute `cropped_tokens` of the recording counts them.
    `generate` pads the rows of a batch that end before others, and that padding is left out too. The end tokens are
    those of the call, or of the model's generation_config; a batch whose rows may end by stop_strings or
    stopping_criteria is rejected. So is what reorders the rows of a cache, such as beam search.

    model   a transformers model of a known family, a module that contains one, or a Checkpoint
    probes  instances of probes, one of each kind; a probe is emptied when its block begins

    One thread at a time may run the model: the one that enters the block, or threads started inside it.

    Raises NoForwardPass if the block ends without a forward pass of this model, and SiteNotReached if a site that a
    probe reads did not fire for every token. A forward pass raises AmbiguousSequences for a mask or positions that do
    not separate text from padding and one sequence from the next, and CannotWatch in a thread of another block.
    """
    return WatchSession(model, probes)


class WatchSession:
    """The context manager that `watch` returns; `recording` returns the measurements."""

    def __init__(self, model: nn.Module | Any, probes: Sequence[Probe]) -> None:
        _check(probes)
        self.model, self.probes = model, tuple(probes)
        self.active = False
        self._module = module_of(model)
        self._decoder = decoder_of(self._module)
        self._all_layers = range(len(self._decoder.layers))
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
            self._dispatcher.flush()
            if kind is None:
                self._tracker.checks.settle()
                self._require_all_fired()
                for probe in self.probes:
                    probe.check()
                whole = True
        finally:
            self._end_probes(whole)

    def _end_probes(self, whole: bool) -> None:
        self.active = False
        for probe in self.probes:
            probe.end(whole)

    @contextmanager
    def label(self, names: Label) -> Iterator[None]:
        """Label the tokens read in this block (domain, token class): one name for all, per sequence, or per token."""
        _check_label(names)
        before: Label = "all"

        def place() -> None:
            nonlocal before
            before, self._tracker.label = self._tracker.label, names

        def remove() -> None:
            self._tracker.label = before

        with placed(place, remove):
            yield

    def recording(self) -> Recording:
        """Return the measurements so far as a Recording; works inside the block and after it."""
        self._passes.require_any("watch")
        if moved := [type(probe).__name__ for probe in self.probes if probe.session is not self]:
            raise ProbeInUse(
                f"{', '.join(moved)} has been used in a later watch, which emptied it.\n"
                "Call recording() before that, or give each watch its own probes."
            )
        self._dispatcher.flush()
        self._tracker.checks.settle()
        return Recording({probe.name: probe.snapshot(self._tracker.labels) for probe in self.probes}, self.facts())

    def facts(self) -> dict[str, Any]:
        """Return the provenance of the measurements so far: the root attrs of the recording."""
        return facts_of(self.model, self._decoder, self._tracker, tuple(self._interventions))

    def _claim(self) -> None:
        """Claim the probes for this session; each serves one `watch` at a time."""
        if busy := [type(probe).__name__ for probe in self.probes if probe.session and probe.session.active]:
            raise ProbeInUse(
                f"{', '.join(busy)} is in use by a watch whose block has not ended.\nGive each watch its own probes."
            )
        self.active = True
        for probe in self.probes:
            probe.session = self

    def _prepare(self) -> None:
        timing = next((probe for probe in self.probes if isinstance(probe, Timing)), None)
        self._stopwatch = None if timing is None else Stopwatch(timing)
        self._hooks = ExitStack()
        self._generate = GenerateCalls(self._module, self._decoder.module)
        self._tracker = SequenceTracker(self._decoder.module, self._generate)
        self._passes = ModelPasses(self._decoder, self._tracker)
        timed = self._stopwatch.leave_out if self._stopwatch else lambda work: work()
        self._dispatcher = Dispatcher(self.probes, self._tracker.read, timed)
        self._capture = CaptureHooks(self._decoder, self._dispatcher.take)
        self._of_caches = [probe for probe in self.probes if type(probe).on_cache is not Probe.on_cache]
        self._interventions: dict[str, None] = {}  # those active in any pass
        self._recomputed: dict[str, tuple[int, ...]] = {}  # by probe: layers whose delta rule it recomputes

    def _place_hooks(self) -> None:
        """Place all hooks: the stopwatch wraps whole layers outside the capture hooks, and their parts inside."""
        for probe in self.probes:
            layers = tuple(layer for layer in probe.layers if "mixer.state" in probe.sites(layer))
            if layers:
                self._recomputed[type(probe).__name__] = layers
        self._hooks.enter_context(running_on_cpu(self._decoder.family))
        if self._stopwatch is not None:
            self._stopwatch.outer(self._decoder, self._hooks)
        self._capture.place(self._dispatcher.buffers, self._hooks)
        if self._stopwatch is not None:
            self._stopwatch.inner(self._decoder, self._hooks)
        self._generate.listen(self._hooks)
        self._tracker.embedded.listen(self._decoder.module.get_input_embeddings(), self._hooks)
        threads = BlockThreads(self._decoder.module, "watches", CannotWatch)
        self._passes.follow(
            self._hooks, threads, begin=self._begin, end=self._end, abort=self._abort, suspend=self._suspend
        )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
        self._reject_replaced_rule()
        if replaced_by(self._decoder.module, "states", self._all_layers):
            self._dispatcher.flush()  # a step does not begin with the state that the one before it ended with
        forward_pass = self._tracker.open(args, kwargs)
        if active := active_interventions(self._decoder.module):
            self._interventions |= dict.fromkeys(active)
        goes_on = self._dispatcher.begin(forward_pass)
        self._capture.begin(self._dispatcher.sampled, at_once=not forward_pass.is_decode)
        self._capture.captured_states = "" if goes_on else "initial" if forward_pass.is_decode else "both"
        if self._stopwatch is not None:
            self._stopwatch.start_model(forward_pass)
        return forward_pass

    def _end(self, forward_pass: ForwardPass, cache: Cache | None) -> None:
        self._capture.end()
        self._dispatcher.end()
        if cache is not None:
            for probe in self._of_caches:
                probe.on_cache(cache, forward_pass)
        if self._stopwatch is not None:
            self._stopwatch.end_model()

    def _abort(self) -> None:
        """Drop the values of a forward pass that raised."""
        self._dispatcher.abort()
        self._capture.end()

    def _suspend(self) -> Resume:
        """Put the current pass aside, with what it has captured and timed; the result takes it up again."""
        of_dispatcher = self._dispatcher.suspend()
        of_stopwatch = None if self._stopwatch is None else self._stopwatch.suspend()
        self._capture.end()

        def resume() -> None:
            of_dispatcher()
            self._capture.begin(sampled=True, at_once=True)  # not a decode step
            if of_stopwatch is not None:
                of_stopwatch()

        return resume

    def _reject_replaced_rule(self) -> None:
        """Raise CannotWatch if a probe recomputes a delta rule that an intervention replaced."""
        for probe, layers in self._recomputed.items():
            if intervention := replaced_by(self._decoder.module, "rule", layers):
                raise CannotWatch(
                    f"{probe} recomputes the delta rule, but {intervention} replaced it; the result would be wrong.\n"
                    f"Leave {probe} out, or restrict it with layers=[...] to layers without that intervention"
                    + ("; prediction_heads=0 measures gates and keys alone." if probe == DeltaNet.__name__ else ".")
                )

    def _require_all_fired(self) -> None:
        self._passes.require_any("watch")
        if silent := self._dispatcher.silent(self._tracker.columns):
            shown = silent[:8] + ([f"  and {len(silent) - 8} more"] if len(silent) > 8 else [])
            raise SiteNotReached(
                f"{len(silent)} watched sites did not fire for every token that the model read:\n"
                + "\n".join(shown)
                + "\nA fused whole-layer kernel, a compiled layer or a skipped layer hides them: "
                "turn it off for this run, or exclude these layers with `layers=`."
            )


def _check(probes: Sequence[Any]) -> None:
    """Raise BadArgument unless these are instances of probes, at most one of each kind."""
    if not probes or not all(isinstance(probe, Probe) for probe in probes):
        given = ", ".join(getattr(probe, "__name__", type(probe).__name__) for probe in probes) or "none"
        raise BadArgument(
            f"watch(model, *probes) takes instances of probes; got {given}.\n"
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
            f"label: names must be strings, and {names!r} is a {type(names).__name__}.\n"
            "Give one name, one name per sequence, or one name per token."
        )
    for name in names:
        _check_label(name, depth + 1)
