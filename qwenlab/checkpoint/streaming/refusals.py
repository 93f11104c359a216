"""Refuse what cannot be streamed sensibly: decoding, which would read the file for each token, and training."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast
from weakref import ref

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from qwenlab.checkpoint.caches import first_cache
from qwenlab.checkpoint.streaming.memory_size import size_text
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.errors import CannotStream


def refuse_decoding(model: nn.Module) -> None:
    """Raise CannotStream if the model's weights are read from its files in every pass."""
    if (stream := streamed_layers(model)) is not None:
        read = size_text(sum(layer.stored_bytes for layer in stream.layers))
        raise CannotStream(
            f"This model was opened with memory=..., so each new token would read {read} of layers again.\nMeasure on "
            "existing text: ql.speculative.trace(checkpoint, texts, depth=...) records the drafts at every place of a "
            "text in a few passes. To decode, open the checkpoint without memory=..."
        )


class PassCheck:
    """Checks the passes of a streamed stack of layers: no gradients, and no loop that decodes token by token."""

    def __init__(self, stack: nn.Module) -> None:
        self._stack = ref(stack)
        self._last_step: Callable[[], Cache | None] = lambda: None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise CannotStream for a pass that cannot be streamed; called before it."""
        stack, values = self._stack(), (*args, *kwargs.values())
        assert stack is not None
        if torch.is_grad_enabled() and (
            any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)
            or any(parameter.requires_grad for parameter in stack.parameters())
        ):
            raise CannotStream(
                "A model opened with memory=... cannot run with gradients: its weights are dropped before a backward "
                "pass could read them.\nRun it under torch.no_grad(), or open the checkpoint without memory=..."
            )
        cache = first_cache(values)
        inputs = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), None)
        inputs = inputs if inputs is not None else next((v for v in args if isinstance(v, torch.Tensor)), None)
        step = cache is not None and inputs is not None and inputs.shape[1] == 1 and cache.get_seq_length() > 0
        if step and self._last_step() is cache:  # the last token of a text may be a pass of its own; two are a loop
            refuse_decoding(stack)
        self._last_step = ref(cache) if step and cache is not None else lambda: None


def refuse_generate(model: PreTrainedModel) -> None:
    """Replace `model.generate` by a function that raises CannotStream."""
    owner, original = ref(model), cast(Callable[..., Any], model.generate)

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        if (streamed := owner()) is not None:
            refuse_decoding(streamed)

    model.generate = generate  # type: ignore[assignment]
