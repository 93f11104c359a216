"""The probes that fit a model, with their default settings: what a profile watches and what the benchmark times."""

from __future__ import annotations

from typing import Any

from torch import nn

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.probe.attention import Attention
from qwenlab.probe.deltanet import DeltaNet
from qwenlab.probe.memory import Memory
from qwenlab.probe.probe import Probe
from qwenlab.probe.residual import Residual
from qwenlab.probe.routing import Routing
from qwenlab.probe.seen import module_of
from qwenlab.probe.timing import Timing


def defaults(model: nn.Module | Any) -> tuple[Probe, ...]:
    """One of each kind of probe that finds something to read in this model, or Checkpoint: all, or all but Routing."""
    decoder = decoder_of(module_of(model))
    routed = (Routing(),) if decoder.layers_with("router") else ()
    return (DeltaNet(), Attention(), *routed, Residual(), Timing(), Memory())
