"""Base classes for interventions on the layers with one kind of mixer, or on some of their heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import MissingPart, UnknownLayer
from qwenlab.interventions.base import Intervention, check_heads

_MIXERS = {DELTANET: "a DeltaNet mixer", ATTENTION: "a softmax-attention mixer"}


@dataclass(frozen=True, kw_only=True)
class LayerIntervention(Intervention):
    """Base class for interventions on the layers with one kind of mixer, `mixer`.

    layers  only these layers; by default every layer of that kind
    """

    mixer: ClassVar[str] = DELTANET
    layers: Sequence[int] | None = None

    def layers_in(self, decoder: Decoder) -> tuple[int, ...]:
        """The layers that are changed. Raises MissingPart and UnknownLayer."""
        able = decoder.layers_of(self.mixer)
        if not able:
            raise MissingPart(
                f"{self} finds nothing to change: none of this model's {len(decoder.layers)} layers has "
                f"{_MIXERS[self.mixer]}.\nLeave it out."
            )
        if unknown := [layer for layer in self.layers or () if layer not in able]:
            raise UnknownLayer(
                f"{self} names layers {unknown}; it changes layers {list(able)} of this model.\n"
                "Leave `layers` out to change all of them."
            )
        return able if self.layers is None else tuple(self.layers)


@dataclass(frozen=True, kw_only=True)
class HeadIntervention(LayerIntervention):
    """Base class for interventions on heads of the layers with one kind of mixer.

    heads  only these heads of each layer; of DeltaNet, value heads
    """

    heads: Sequence[int] | None = None

    def layers_in(self, decoder: Decoder) -> tuple[int, ...]:
        layers = super().layers_in(decoder)
        if self.heads is not None:
            mixer: Any = decoder.mixer(layers[0])
            config: Any = decoder.module.config
            count = mixer.num_v_heads if self.mixer == DELTANET else config.num_attention_heads
            check_heads(self.heads, int(count), f"{self}: layers.{layers[0]}.mixer")
        return layers
