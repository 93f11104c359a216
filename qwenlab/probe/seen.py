"""`watch`: probes on a plain transformers model for the length of a `with` block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.errors import BadArgument, NothingRead, SilentSite
from qwenlab.probe.deltanet import DeltaNet
from qwenlab.probe.facts import facts_of
from qwenlab.probe.memory import Memory
from qwenlab.probe.probe import Probe
from qwenlab.probe.reading import Reader, Reading
from qwenlab.probe.stopwatch import Stopwatch
from qwenlab.probe.taps import Notes, Part, Taps, joined, wanted_notes
from qwenlab.probe.timing import Timing
from qwenlab.record.recording import Recording

STEPS = 32
"""Decode steps are reduced this many at a time: the notes of one are too small to be worth a pass of their own."""


def watch(model: nn.Module | Any, *probes: Probe) -> Seen:
    """Watch a model while a `with` block runs: `with watch(model, DeltaNet(), Routing()) as seen: model(**inputs)`.

    The model is used as it is: forward, `generate`, training steps, split over devices, with any kernel. Not one logit
    changes, and nothing is left behind, also when the block raises. Padding is told by the 2-D `attention_mask` and left
    out; sequences are followed from call to call by their cache, so that the same tokens give the same sums however they are
    fed. Rows of a batched `generate` that ended early are only filled with padding by transformers, and are left out from
    there on. Beam search reorders rows within the cache, which cannot be followed.

    model   a transformers model of a known family, anything that contains one, or a Checkpoint
    probes  each one reads what it is named for; a probe is emptied when its block begins

    Raises NothingRead when the block ended without a forward pass of this model, and SilentSite when something that was to be
    read did not fire for every token the model read.
    """
    return Seen(model, probes)


class Seen:
    """What is being watched, and what was seen: a context manager that `watch` makes."""

    def __init__(self, model: nn.Module | Any, probes: Sequence[Probe]) -> None:
        if not probes or not all(isinstance(probe, Probe) for probe in probes):
            found = ", ".join(type(probe).__name__ for probe in probes) or "none"
            raise BadArgument(
                f"watch(model, *probes) takes instances of probes; got {found}.\n"
                "Write for example watch(model, DeltaNet(), Attention())."
            )
        names = [probe.name for probe in probes]
        if len(set(names)) < len(names):
            raise BadArgument(f"watch got two probes of the same kind: {', '.join(names)}.\nGive each kind once.")
        self.model, self.probes = model, tuple(probes)
        self._decoder: Decoder = decoder_of(_module(model))
        self._hooks = ExitStack()
        self._pending: dict[tuple[int, Part], list[Notes]] = {}
        self._readings: list[Reading] = []
        self._ended = False

    def __enter__(self) -> Seen:
        try:
            self._start()
        except BaseException:
            self._hooks.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        self._taps.reading = None
        self._flush()
        self._ended = True
        if kind is None:
            self._require_all_fired()

    @contextmanager
    def label(self, names: str | Sequence[str] | Sequence[Sequence[str]]) -> Iterator[None]:
        """Call the tokens read in this block by a name (domain, token class): one name, one a sequence, or one a token."""
        before, self._reader.label = self._reader.label, names
        try:
            yield
        finally:
            self._reader.label = before

    def recording(self) -> Recording:
        """What was seen so far, as a Recording; within the block, or after it."""
        if not self._reader.forwards:
            raise NothingRead(self._nothing_read())
        self._flush()
        labels = self._reader.labels
        datasets = {probe.name: probe.dataset(labels) for probe in self.probes}
        return Recording(datasets, facts_of(self.model, self._decoder, self._reader, datasets))

    def _start(self) -> None:
        for probe in self.probes:
            probe.start(self._decoder)
        timing = next((probe for probe in self.probes if isinstance(probe, Timing)), None)
        self._memory = next((probe for probe in self.probes if isinstance(probe, Memory)), None)
        self._stopwatch = Stopwatch(timing) if timing is not None else None
        self._timing = timing
        self._reader = Reader(self._decoder.module, *_end_tokens(self._decoder.module, self.model))
        self._taps = Taps(self._decoder, self._deliver)
        self._readers = {
            key: [probe for probe in self.probes if key[0] in probe.layers and any(p == key[1] for p, _ in probe.wants(key[0]))]
            for key in self._wanted()
        }
        self._expected = self._wanted()
        self._fired: dict[tuple[int, Part, str], int] = {}
        for probe in self.probes:
            if isinstance(probe, DeltaNet):
                self._taps.rule.heads = {layer: probe.heads_asked(layer) for layer in probe.layers}
        self._place_hooks()

    def _wanted(self) -> dict[tuple[int, Part], set[str]]:
        return wanted_notes(
            (layer, part, name) for probe in self.probes for layer in probe.layers for part, name in probe.wants(layer)
        )

    def _place_hooks(self) -> None:
        module = self._decoder.module
        if self._stopwatch is not None:
            self._hooks.callback(self._stopwatch.close)
            self._stopwatch.outer(self._decoder)
        self._hooks.callback(self._taps.close)
        self._taps.place(self._expected)
        if self._stopwatch is not None:
            self._stopwatch.inner(self._decoder)
        self._hooks.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        self._hooks.callback(module.register_forward_hook(self._after).remove)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._taps.reading is not None:
            self._forget_broken_off()
        with _quietly():
            reading = self._reader.open(args, kwargs)
            if self._readings and not _goes_on(self._readings[-1], reading):
                self._flush()
        self._taps.reading = reading
        if self._stopwatch is not None:
            self._stopwatch.start_model(reading.width)

    def _after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        reading, self._taps.reading = self._taps.reading, None
        if reading is None:
            return
        if self._stopwatch is not None:
            self._stopwatch.end_model(reading.batch * reading.width)
        cache = getattr(out, "past_key_values", None)
        self._reader.close(cache)
        if self._memory is not None and cache is not None:
            self._memory.weigh(cache, reading.past + reading.width, reading.batch)
        if reading.width == 1 and reading.continued:
            self._readings.append(reading)
            if len(self._readings) >= STEPS:
                self._flush()

    def _deliver(self, layer: int, part: Part, notes: Notes) -> None:
        """The notes of a part that has just run: reduced now, or kept until enough decode steps are together."""
        reading = self._taps.reading
        if reading is None or (layer, part) not in self._expected:
            return
        columns = reading.batch * reading.width
        for name in self._expected[layer, part] & notes.keys():
            shape = tuple(notes[name].shape)[:2]
            fired = shape[0] * shape[1] if shape != (reading.batch, reading.width) else columns
            self._fired[layer, part, name] = self._fired.get((layer, part, name), 0) + fired
        complete = all(
            name in notes and tuple(notes[name].shape)[:2] == (reading.batch, reading.width)
            for name in self._expected[layer, part]
        )
        if complete:
            self._timed(lambda: self._take(layer, part, notes, reading))

    def _take(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        with _quietly():
            if "rule" in notes:
                call: Any = notes["rule"]
                notes["rule"] = call.settle(reading.on(call.g.device))
            if reading.width == 1 and reading.continued:
                self._pending.setdefault((layer, part), []).append(notes)
                attention: Any = self._pending[layer, part][0].get("attention")
                if attention is not None and len(self._pending[layer, part]) > 1:
                    self._pending[layer, part][-2]["attention"].key = notes["attention"].key  # type: ignore[union-attr]
            else:
                self._look(layer, part, notes, reading)

    def _look(self, layer: int, part: Part, notes: Notes, reading: Reading) -> None:
        first: Any = next(iter(notes.values()))
        device = (first.g if hasattr(first, "g") else first.query if hasattr(first, "query") else first).device
        for probe in self._readers[layer, part]:
            probe.look(layer, part, notes, reading.on(device))

    def _flush(self) -> None:
        """Reduce the decode steps kept so far."""
        readings, pending = self._readings, self._pending
        self._readings, self._pending = [], {}
        if not readings:
            return
        with _quietly():
            reading = Reading.joined(readings)
            for (layer, part), notes in pending.items():
                if len(notes) == len(readings):
                    self._look(layer, part, joined(notes), reading)

    def _forget_broken_off(self) -> None:
        """The forward pass before this one raised: drop the notes of its layers that ran."""
        self._pending = {key: notes[: len(self._readings)] for key, notes in self._pending.items()}

    def _timed(self, work: Callable[[], None]) -> None:
        if self._stopwatch is None or self._timing is None:
            work()
            return
        phase, began = self._stopwatch.phase, time.perf_counter()
        self._stopwatch.leave_out(work)
        if phase is not None:
            self._timing.probe_seconds[phase] += time.perf_counter() - began

    def _nothing_read(self) -> str:
        return (
            f"The watched {type(self._decoder.module).__name__} ran no forward pass inside the `with` block.\n"
            "Call the very model that was given to watch (or one that contains it) inside the block."
        )

    def _require_all_fired(self) -> None:
        if not self._reader.forwards:
            raise NothingRead(self._nothing_read())
        read = self._reader.columns
        silent = [
            f"  {_site(layer, part, name)}: {self._fired.get((layer, part, name), 0)} of {read} tokens"
            for (layer, part), names in sorted(self._expected.items())
            for name in sorted(names)
            if self._fired.get((layer, part, name), 0) != read
        ]
        if silent:
            shown = silent[:8] + ([f"  and {len(silent) - 8} more"] if len(silent) > 8 else [])
            raise SilentSite(
                f"{len(silent)} watched sites did not fire for every token that the model read:\n" + "\n".join(shown) + "\n"
                "A fused whole-layer kernel, a compiled layer or a layer that was skipped hides them: turn it off for this run, "
                "or leave these layers out with `layers=`."
            )


def _module(model: nn.Module | Any) -> nn.Module:
    """The module itself, or the one a Checkpoint holds."""
    return model if isinstance(model, nn.Module) else model.model


def _site(layer: int, part: Part, name: str) -> str:
    """A note's name in the words of sites."""
    if name == "stream":
        return f"layers.{layer}.residual ({part})"
    words = {"mixer": "mixer", "rule": "mixer.decay", "attention": "mixer.query", "gate": "mixer.gate", "mlp": "mlp"}
    routed = {"routed": "experts", "shared": "shared_expert", "shared_gate": "shared_expert"}
    return f"layers.{layer}.{words.get(name) or routed.get(name, 'router')}"


def _goes_on(before: Reading, now: Reading) -> bool:
    """Whether a decode step follows the one before it, row by row."""
    return (
        now.width == 1
        and now.continued
        and now.batch == before.batch
        and now.past == before.past + 1
        and now.carry is before.carry
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Probes work outside autograd, inference mode and autocast, whatever the block runs in."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        with torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else torch.no_grad():
            yield


def _end_tokens(decoder: nn.Module, model: Any) -> tuple[list[int], int | None]:
    """Tokens that end a row of `generate`, and the one that fills it from there on."""
    generating = (getattr(module, "generation_config", None) for module in _module(model).modules())
    config: Any = next((found for found in generating if found is not None), decoder.config)
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = config.pad_token_id
    return ends, (ends[0] if pad is None and ends else pad)
