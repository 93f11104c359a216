"""Reuse the outputs of the layers below an intervention, which are the same with and without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from qwenlab.capture.active import active_interventions
from qwenlab.capture.wrapping import heard, in_this_thread, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.interventions.session import InterventionSession


@contextmanager
def record_layer_outputs(decoder: Decoder) -> Iterator[dict[int, Any]]:
    """Record the output of each layer in the forward pass of the block."""
    recorded: dict[int, Any] = {}

    def record(layer: int, args: Any, kwargs: Any, result: Any) -> None:
        recorded[layer] = result

    with ExitStack() as hooks:
        for layer, module in enumerate(decoder.layers):
            hooks.enter_context(outputs(module, in_this_thread(partial(record, layer))))
        yield recorded


@contextmanager
def reuse_outputs(decoder: Decoder, session: InterventionSession, recorded: Mapping[int, Any]) -> Iterator[int]:
    """Inside this block, the layers below the interventions of a session return recorded outputs; yields their number.

    Enter it inside the block of the session; `recorded` is of the same tokens without its interventions. Inside the
    block of other interventions, every layer runs; inside a `watch`, the layers that it hooks and those above.
    """

    def reuse(result: Any, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return result

    others = len(active_interventions(decoder.module)) > len(session.interventions)
    lowest = 0 if others else _lowest_layer(session)
    skipped = next((n for n in range(lowest) if any(map(heard, decoder.layers[n].modules()))), lowest)
    with ExitStack() as hooks:
        for layer in range(skipped):
            hooks.enter_context(outputs(decoder.layers[layer], instead=partial(reuse, recorded[layer])))
        yield skipped


def _lowest_layer(session: InterventionSession) -> int:
    """The lowest layer that the interventions of an active session change; 0 if a point does not name its layer."""
    found = [re.match(r"layers\.(\d+)\.", count.where) for counts in session.hits.values() for count in counts]
    return min((int(match[1]) if match else 0 for match in found), default=0)
