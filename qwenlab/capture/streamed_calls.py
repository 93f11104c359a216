"""Run calls of a model that is read from its files: each layer, and the lm_head, once for all calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from torch import nn

from qwenlab.capture.layer_major import Branch, run_layer_major
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.streaming.stream import WeightStream

T = TypeVar("T")


def run_streamed(
    model: nn.Module, stream: WeightStream, calls: Iterable[Callable[[], T] | Branch[T]], *, progress: bool = False
) -> Generator[T, None, None]:
    """Run calls of a streamed model together, as `run_layer_major`; yields their results in the order of the calls.

    stream  that of the model, from `streamed_layers`. Hidden states beyond its budget wait in files. An lm_head that
            does not fit into the budget is read once per call
    """
    return run_layer_major(
        decoder_of(model),
        calls,
        layers=stream.present,
        last=stream.head_present,
        memory=stream.spare,
        progress=progress,
    )
