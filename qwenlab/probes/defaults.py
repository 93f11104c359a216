"""Choose the probes that fit a model: `defaults` for every run, `thorough` for studying single texts."""

from __future__ import annotations

from typing import Any

from torch import nn

from qwenlab.checkpoint.decoder import decoder_of, module_of
from qwenlab.probes.attention import Attention
from qwenlab.probes.base import Probe
from qwenlab.probes.deltanet import DeltaNet
from qwenlab.probes.memory import Memory
from qwenlab.probes.residual import Residual
from qwenlab.probes.routing.routing import Routing
from qwenlab.probes.timing.timing import Timing


def defaults(model: nn.Module | Any) -> tuple[Probe, ...]:
    """Return one of each cheap probe that fits this model or Checkpoint, with its default arguments.

    They sample tokens and skip the prediction error, to be cheap enough for a training loop or a server (`make bench`
    measures the cost). The attr `sample` of each node says what was left out.
    """
    return (DeltaNet(), Attention(), *_routed(model, Routing()), Residual(), Timing(), Memory())


def thorough(model: nn.Module | Any) -> tuple[Probe, ...]:
    """Return the same probes for every token, with the prediction error of every DeltaNet head; for single texts."""
    deltanet, routing = DeltaNet(every=1, prediction_heads="all"), Routing(every=1)
    return (deltanet, Attention(every=1), *_routed(model, routing), Residual(every=1), Timing(), Memory())


def _routed(model: nn.Module | Any, routing: Routing) -> tuple[Routing, ...]:
    return (routing,) if decoder_of(module_of(model)).layers_with("router") else ()
