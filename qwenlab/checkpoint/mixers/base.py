"""Base class of the descriptions of mixers: which values a mixer has, and where they are found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOKEN = ("sequence", "position")
BY_HEAD = (*TOKEN, "head", "channel")
BY_KEY_HEAD = (*TOKEN, "key_head", "channel")


@dataclass(frozen=True, slots=True)
class MixerSite:
    """A value of a mixer.

    word    its name: "mixer.gate"
    module  the part of the mixer that computes it; "" for the mixer
    dims, units  as in `Site`
    """

    word: str
    dims: tuple[str, ...]
    module: str = ""
    units: str = "1"


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a mixer whose output, or one of whose arguments, is a value; the rest is as in `ValueLayout`."""

    module: str
    argument: int | None = None  # None for the output
    rows: int = 0
    shape: tuple[int, ...] = ()
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerKind(ABC):
    """A kind of mixer as one family builds it. Names of parts are those in transformers and in checkpoint files.

    path       of the mixer, from the decoder layer
    output     output projection, from concatenated heads to the residual stream
    norms      of the layer, for the mixer and for the MLP
    post_norm  whether the norms change what mixer and MLP add to the residual stream, and not what they read from it

    A `config` is a `TextConfig` or a config of transformers: both name the sizes as config.json does.
    """

    path: str
    output: str
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    post_norm: bool = False

    @abstractmethod
    def sites(self) -> tuple[MixerSite, ...]:
        """Return the values of the mixer, besides its output."""

    @abstractmethod
    def place(self, word: str, config: Any) -> Place | None:
        """Return where a value is found; None if only a function call has it, or the mixer has no such value."""

    @abstractmethod
    def head_counts(self, config: Any) -> tuple[int, int]:
        """Return the number of value heads or query heads, and of key heads."""

    @abstractmethod
    def tensors(self, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the names and shapes of the mixer's tensors."""
