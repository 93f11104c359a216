"""Edits of whole layers with one kind of mixer, or of some of their heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, NothingToProbe, UnknownLayer
from qwenlab.interventions.base import Intervention, check_heads, indices
from qwenlab.interventions.module_sites import InterventionPoints

_MIXERS = {DELTANET: "a DeltaNet mixer", ATTENTION: "a softmax-attention mixer"}


@dataclass(frozen=True, kw_only=True)
class LayerIntervention(Intervention):
    """A change in the layers with one kind of mixer.

    layers  only these layers; by default every one of that kind
    """

    mixer: ClassVar[str]
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raises BadArgument for layers that are no indices."""
        self._check_indices("layers")

    def _check_indices(self, name: str) -> None:
        if getattr(self, name) is not None:
            object.__setattr__(self, name, indices(getattr(self, name), f"{type(self).__name__}({name}=...)"))

    def chosen(self, places: InterventionPoints) -> tuple[int, ...]:
        """The layers that are changed. Raises NothingToProbe and UnknownLayer."""
        able = places.decoder.layers_of(self.mixer)
        if not able:
            raise NothingToProbe(
                f"{self} finds nothing to change: none of this model's {len(places.decoder.layers)} layers has "
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
    """A change in heads of those layers.

    heads  only these heads of each layer; of DeltaNet, value heads
    """

    heads: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raises BadArgument for layers or heads that are no indices."""
        super().__post_init__()
        self._check_indices("heads")

    def chosen(self, places: InterventionPoints) -> tuple[int, ...]:
        """The layers that are changed. Raises BadArgument for heads that they do not have, too."""
        layers = super().chosen(places)
        if self.heads is not None:
            mixer: Any = places.decoder.mixer(layers[0])
            config: Any = places.decoder.module.config
            there = mixer.num_v_heads if self.mixer == DELTANET else config.num_attention_heads
            check_heads(self.heads, int(there), f"{self}: layers.{layers[0]}.mixer")
        return layers

    def these(self, count: int, device: torch.device) -> torch.Tensor:
        """bool [head]: the heads that are changed, among so many."""
        found = torch.full((count,), self.heads is None, device=device)
        if self.heads is not None:
            found[list(self.heads)] = True
        return found


def whole_number(value: object, least: int, asked: str) -> None:
    """Raise BadArgument unless this is a whole number, `least` or more; `asked` says where."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadArgument(f"{asked}: give a whole number of tokens, {least} or more; got {value!r}.")
