"""Reuse what a pass without interventions computed below an intervention, which is the same with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qwenlab.capture.active import active_interventions
from qwenlab.capture.layout import attachment
from qwenlab.capture.wrapping import Arguments, heard, in_this_thread, listening, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.interventions.session import InterventionSession

_KEPT = 2**28  # bytes of layers' values that are kept rather than computed again
_AFTER_MIXER = ("mixer", "router", "experts", "shared_expert", "mlp", "residual")
"""Sites of a layer, without its number, whose change leaves alone what the mixer computes."""


@dataclass(frozen=True)
class LayerValues:
    """What a layer read and computed in a pass without interventions.

    stream  the residual stream that it read
    mixer   what its mixer returned
    heads   what the mixer's output projection read; None if the mixer returns something else than the projection
    """

    stream: torch.Tensor
    mixer: Any
    heads: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        values = (self.stream, _first(self.mixer), self.heads)
        return sum(value.nbytes for value in values if value is not None)


class Prefix:
    """A pass without interventions up to any layer: the values of that layer, which an intervention there starts from.

    reusable  layers below the first one that somebody observes or changes; 0 if a model changes the stream between
              layers

    The values of the lowest layers are kept, 256 MiB of them; those of one layer above are computed again from those
    below it. Layers that are asked for in ascending order are computed again once.
    """

    def __init__(self, decoder: Decoder) -> None:
        layers = enumerate(decoder.layers)
        self.decoder = decoder
        self.reusable = next((n for n, layer in layers if any(map(heard, layer.modules()))), len(decoder.layers))
        self._calls: list[Arguments] = []
        self._kept: list[LayerValues] = []
        self._left = _KEPT
        self._last: Any = None  # the output of the layer that was recorded last
        self._output: Any = None  # that of the last layer whose values are kept
        self._running: tuple[int, LayerValues | None, Any] | None = None  # a layer, its values, its output

    def stream(self, layer: int) -> Any:
        """The residual stream that a layer reads, without running the layer."""
        if layer < len(self._kept):
            return self._kept[layer].stream
        if layer == len(self._kept):
            return self._output
        if self._running is None or self._running[0] != layer:
            self.at(layer - 1)
        number, values, output = self._running or (-1, None, None)
        return values.stream if values is not None and number == layer else output

    def at(self, layer: int) -> LayerValues:
        """The values of a layer."""
        if layer < len(self._kept):
            return self._kept[layer]
        if self._running is None or self._running[0] > layer:
            self._running = len(self._kept) - 1, None, self._output
        number, values, output = self._running
        while values is None or number < layer:
            number += 1
            args, kwargs = self._calls[number]
            with ExitStack() as hooks:
                noted = self._note(number, hooks)
                stream, output = output, self.decoder.layers[number](output, *args, **kwargs)
            values = noted(stream)
        self._running = number, values, output
        return values

    def _note(self, layer: int, hooks: ExitStack) -> Callable[[torch.Tensor], LayerValues]:
        """Note what the mixer of a layer computes; returns a function of the stream that gives the values then."""
        found: dict[str, Any] = {}
        place = attachment(self.decoder, layer, "mixer.heads")

        def of_mixer(args: Any, kwargs: Any, result: Any) -> None:
            found["mixer"] = result

        def of_projection(args: Any, kwargs: Any, result: Any) -> None:
            found["heads"], found["projected"] = args[0], result

        hooks.enter_context(outputs(self.decoder.mixer(layer), in_this_thread(of_mixer)))
        if place is not None and place.argument == 0:
            hooks.enter_context(outputs(place.module, in_this_thread(of_projection)))

        def values(stream: torch.Tensor) -> LayerValues:
            last = "heads" in found and _first(found["mixer"]) is found["projected"]
            return LayerValues(stream, found["mixer"], found["heads"] if last else None)

        return values

    def _record(
        self, layer: int, noted: Callable[[torch.Tensor], LayerValues], args: Any, kwargs: Any, out: Any
    ) -> None:
        """Record a call of a layer; keep its values up to the limit, and the output of the last that is kept."""
        stream, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        if layer and stream is not self._last:
            self.reusable = 0
        self._calls.append((rest, {name: value for name, value in kwargs.items() if name != "hidden_states"}))
        self._last = out
        values = noted(stream)
        self._left -= values.nbytes
        if self._left >= 0:
            self._kept.append(values)
            self._output = out
        elif not layer:
            self._output = stream


@contextmanager
def record_prefix(decoder: Decoder) -> Iterator[Prefix]:
    """Record the forward pass of the block, of which there is one, without interventions."""
    prefix = Prefix(decoder)
    with ExitStack() as hooks:
        for layer, module in enumerate(decoder.layers):
            noted = prefix._note(layer, hooks)
            hooks.enter_context(outputs(module, in_this_thread(partial(prefix._record, layer, noted))))
        yield prefix


@contextmanager
def reuse_prefix(prefix: Prefix, session: InterventionSession) -> Iterator[int]:
    """Inside this block, a pass starts at the lowest layer that a session changes; yields the number of layers below.

    Of that layer, the mixer does not run again if the session changes only what comes after it or its heads' outputs.
    Enter it inside the block of the session; the prefix is of the same tokens. Inside the block of other interventions,
    every layer runs; inside a `watch`, the layers that it observes and those above.
    """
    decoder = prefix.decoder
    others = len(active_interventions(decoder.module)) > len(session.interventions)
    lowest, sites = _lowest_layer(session)
    skipped = 0 if others else min(lowest, prefix.reusable)
    with ExitStack() as hooks:
        if skipped:
            stream = prefix.stream(skipped)
            for layer in range(skipped):
                hooks.enter_context(outputs(decoder.layers[layer], instead=partial(_instead, stream)))
        if not others and lowest < prefix.reusable:
            mixer, module = _mixer_instead(prefix, lowest, sites), decoder.mixer(lowest)
            if mixer is not None:
                hooks.enter_context(listening(module, "forward", instead=mixer))
        yield skipped


def _mixer_instead(prefix: Prefix, layer: int, sites: set[str]) -> Callable[..., Any] | None:
    """A function to call instead of a layer's mixer; None if one of the changed sites is inside the mixer."""
    if not sites.issubset((*_AFTER_MIXER, "mixer.heads")):
        return None
    values, place = prefix.at(layer), attachment(prefix.decoder, layer, "mixer.heads")
    if "mixer.heads" not in sites:
        return partial(_instead, values.mixer)
    if values.heads is None or place is None:
        return None
    project = partial(place.module, values.heads)

    def projected(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = project()
        return (out, *values.mixer[1:]) if isinstance(values.mixer, tuple) else out

    return projected


def _instead(value: Any, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return value


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _lowest_layer(session: InterventionSession) -> tuple[int, set[str]]:
    """The lowest layer that an active session changes, and the sites there; 0 and no site if a point names no layer."""
    found = [re.match(r"layers\.(\d+)\.(.*)", count.where) for counts in session.hits.values() for count in counts]
    named = [(int(match[1]), match[2]) for match in found if match is not None]
    if len(named) < len(found) or not named:
        return 0, {""}
    lowest = min(layer for layer, _ in named)
    return lowest, {site for layer, site in named if layer == lowest}
