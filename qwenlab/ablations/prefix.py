"""Layers below an edit are the same with and without it: they are read once, and their outputs given back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from qwenlab.capture.active import active_interventions
from qwenlab.capture.wrapping import heard, in_this_thread, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.interventions.session import InterventionSession


@contextmanager
def outputs_of_layers(decoder: Decoder) -> Iterator[dict[int, Any]]:
    """What each layer returns in the forward pass of the block."""
    found: dict[int, Any] = {}

    def keep(layer: int, args: Any, kwargs: Any, result: Any) -> None:
        found[layer] = result

    with ExitStack() as hooks:
        for layer, module in enumerate(decoder.layers):
            hooks.enter_context(outputs(module, in_this_thread(partial(keep, layer))))
        yield found


@contextmanager
def given_back(decoder: Decoder, editing: InterventionSession, known: Mapping[int, Any]) -> Iterator[int]:
    """In the block, which lies in that of an edit, the layers below the edit do not run: each returns what is known.

    Inside another edit's block every layer runs; inside a `watch`, those in which it listens and those above.

    known   what each layer returned when the unedited model read the same
    yields  how many layers do not run
    """

    def give(result: Any, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return result

    others = len(active_interventions(decoder.module)) > len(editing.edits)
    lowest = 0 if others else _lowest_layer(editing)
    skipped = next((layer for layer in range(lowest) if _is_heard(decoder.layers[layer])), lowest)
    with ExitStack() as hooks:
        for layer in range(skipped):
            hooks.enter_context(outputs(decoder.layers[layer], instead=partial(give, known[layer])))
        yield skipped


def _lowest_layer(editing: InterventionSession) -> int:
    """The first layer in which the edits of a block that has begun change anything; 0 where that is not told."""
    named = [re.match(r"layers\.(\d+)\.", place.where) for places in editing.fired.values() for place in places]
    return min((int(each[1]) if each else 0 for each in named), default=0)


def _is_heard(layer: nn.Module) -> bool:
    return any(heard(module) for module in layer.modules())
