"""The probes that fit a model: those that can stay on, and those that leave nothing out."""

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
    """One of each kind of probe that finds something to read in this model, or Checkpoint, as it is by default.

    They sample tokens and leave the prediction error out, to cost little enough for a training loop or a server:
    `make bench` says how much. A recording says what was left out.
    """
    return (DeltaNet(), Attention(), *_routed(model, Routing()), Residual(), Timing(), Memory())


def thorough(model: nn.Module | Any) -> tuple[Probe, ...]:
    """The same, leaving nothing out: every token, and the prediction error of every DeltaNet head.

    For a text that is read to be studied. Attention rows of every token cost as much as attention itself.
    """
    deltanet, routing = DeltaNet(every=1, prediction_heads="all"), Routing(every=1)
    return (deltanet, Attention(every=1), *_routed(model, routing), Residual(every=1), Timing(), Memory())


def _routed(model: nn.Module | Any, routing: Routing) -> tuple[Routing, ...]:
    return (routing,) if decoder_of(module_of(model)).layers_with("router") else ()
