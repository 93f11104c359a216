"""Follow calls of `generate` to learn which tokens end and pad the rows of a batch."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from qwenlab.capture.wrapping import listening
from qwenlab.checkpoint.caches import TESTED
from qwenlab.errors import UnsupportedTransformers

_OF_ALL_ROWS = ("MaxLengthCriteria", "MaxTimeCriteria")
"""Stopping criteria that end all rows at once."""

GENERATE_METHODS = ("_prepare_generation_config", "_get_stopping_criteria")
"""Methods that every call of `generate` calls, in this order. They are private, but as old as transformers 4."""


@dataclass(frozen=True)
class RowEnds:
    """How rows of a batch end.

    tokens  the ids that end a row
    pad     the id that fills an ended row while others go on
    others  arguments of `generate` that may end a row without such a token; "" where there are none
    """

    tokens: tuple[int, ...]
    pad: int | None
    others: str = ""

    @staticmethod
    def of(config: Any, others: str = "") -> RowEnds:
        """Return the row ends of a generation_config, or of a model's config."""
        tokens, pads = _ids(config.eos_token_id), _ids(config.pad_token_id)
        return RowEnds(tokens, next(iter((*pads, *tokens)), None), others)


NO_ENDS = RowEnds((), None)
"""For rows that are not known to end before the others."""


class GenerateCalls:
    """Follows the calls of `generate` of every model that contains a stack of layers.

    default  how rows end according to the config of the given model; for loops without `generate`
    """

    def __init__(self, module: nn.Module, stack: PreTrainedModel) -> None:
        generating = (each for each in module.modules() if vars(each).get("generation_config") is not None)
        owner: Any = next((each for each in generating if any(part is stack for part in each.modules())), None)
        self.default = RowEnds.of(stack.config if owner is None else owner.generation_config)
        self._stack = stack
        self._begun: RowEnds | None = None

    def listen(self, hooks: ExitStack) -> None:
        """Follow the calls until `hooks` closes. Raises UnsupportedTransformers."""
        if missing := [name for name in GENERATE_METHODS if name not in vars(GenerationMixin)]:
            raise UnsupportedTransformers(
                f"GenerationMixin of transformers {transformers.__version__} has no {' and no '.join(missing)}, so "
                f"rows of a batch that ended cannot be left out.\nInstall a tested version: pip install '{TESTED}'."
            )
        hooks.enter_context(listening(GenerationMixin, GENERATE_METHODS[0], self._on_config))
        hooks.enter_context(listening(GenerationMixin, GENERATE_METHODS[1], self._on_criteria))

    def take_ends(self) -> RowEnds | None:
        """Return how rows end in the `generate` call that began since this was last called; None if none began."""
        ends, self._begun = self._begun, None
        return ends

    def _on_config(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._is_of(args[0]):
            config = result[0]
            self._begun = RowEnds.of(config, "stop_strings" if config.stop_strings else "")

    def _on_criteria(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        criteria = kwargs["stopping_criteria"] if "stopping_criteria" in kwargs else args[2]
        own = [type(each).__name__ for each in criteria or () if type(each).__name__ not in _OF_ALL_ROWS]
        if self._begun is not None and own and self._is_of(args[0]):
            others = " and ".join(filter(None, ["stopping_criteria", self._begun.others]))
            self._begun = replace(self._begun, others=others)

    def _is_of(self, model: nn.Module) -> bool:
        """Whether a model contains the stack."""
        return any(part is self._stack for part in model.modules())


def _ids(ids: Any) -> tuple[int, ...]:
    """Return token ids from an integer, a list, an array or a tensor; an empty tuple for None."""
    return () if ids is None else tuple(torch.as_tensor(ids).reshape(-1).tolist())
