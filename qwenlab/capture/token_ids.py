"""Recover token ids of forward passes that get embeddings, as those of the published multimodal classes do."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import nn

from qwenlab.capture.wrapping import outputs


class EmbeddedTokens:
    """Remembers the newest ids that an embedding module looked up, until its output reaches the decoder.

    `...ForConditionalGeneration` looks its tokens up itself, and calls the text stack with `inputs_embeds`.
    """

    def __init__(self) -> None:
        self._newest: tuple[ReferenceType[torch.Tensor], int, torch.Tensor] | None = None

    def listen(self, embedding: nn.Module, hooks: ExitStack) -> None:
        """Follow every call of the embedding module until `hooks` closes."""
        hooks.enter_context(outputs(embedding, self._remember))

    def ids_of(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """Return the ids, int [batch, position], of these embeddings [batch, position, channel].

        None for embeddings that were changed since, for example to insert those of an image, or that another module
        made.
        """
        if self._newest is None:
            return None
        output, version, ids = self._newest
        return ids if output() is embeddings and version == _version(embeddings) else None

    def _remember(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> None:
        ids = args[0] if args else next(iter(kwargs.values()))
        self._newest = (ref(out), _version(out), ids)


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place; 0 for tensors of inference mode, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def codes(embeddings: torch.Tensor) -> torch.Tensor:
    """Return int64 [batch, position]: a hash of each vector of embeddings [batch, position, channel]."""
    bits = embeddings.detach().float().contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(bits.shape[-1], device=bits.device) + 1
    mixed = (bits + odd) * 0x9E3779B97F4A7C1 * odd
    return (mixed ^ (mixed >> 31)).sum(dim=-1)
