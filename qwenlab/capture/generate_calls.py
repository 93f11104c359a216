"""The tokens that end and fill the rows of a batched `generate`, by the model's config or by the call's."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from qwenlab.capture.wrapping import method_calls
from qwenlab.checkpoint.caches import TESTED
from qwenlab.errors import UnsupportedTransformers

_OF_ALL_ROWS = ("MaxLengthCriteria", "MaxTimeCriteria")
"""Stopping criteria that end all rows at once."""

_METHODS = ("_prepare_generation_config", "_get_stopping_criteria")
"""What every call of `generate` calls in turn. They are not public, but have been there since transformers 4."""


@dataclass(frozen=True)
class RowEnds:
    """How rows of a batch end.

    tokens  the ids that end a row
    pad     the id that fills an ended row while others go on
    others  arguments by which a row may end without such a token; "" where there are none
    """

    tokens: tuple[int, ...]
    pad: int | None
    others: str = ""

    @staticmethod
    def of(config: Any, others: str = "") -> RowEnds:
        """Those of a generation_config, or of a model's config."""
        tokens, pads = _ids(config.eos_token_id), _ids(config.pad_token_id)
        return RowEnds(tokens, next(iter((*pads, *tokens)), None), others)


NO_ENDS = RowEnds((), None)
"""Of rows that are not known to end before the others."""


class GenerateCalls:
    """Follows the calls of `generate` by the models that hold a stack of layers, whoever makes them.

    usual  how rows end by the config of the model that was given; in loops without `generate`
    """

    def __init__(self, module: nn.Module, stack: PreTrainedModel) -> None:
        generating = (each for each in module.modules() if vars(each).get("generation_config") is not None)
        owner: Any = next((each for each in generating if any(part is stack for part in each.modules())), None)
        self.usual = RowEnds.of(stack.config if owner is None else owner.generation_config)
        self._stack = stack
        self._begun: RowEnds | None = None

    def listen(self, hooks: ExitStack) -> None:
        """Follow the calls until `hooks` closes. Raises UnsupportedTransformers."""
        if missing := [name for name in _METHODS if name not in vars(GenerationMixin)]:
            raise UnsupportedTransformers(
                f"GenerationMixin of transformers {transformers.__version__} has no {' and no '.join(missing)}, so "
                f"rows of a batch that ended cannot be left out.\nInstall a tested version: pip install '{TESTED}'."
            )
        hooks.enter_context(method_calls(GenerationMixin, _METHODS[0], self._hear_config))
        hooks.enter_context(method_calls(GenerationMixin, _METHODS[1], self._hear_criteria))

    def begun(self) -> RowEnds | None:
        """How rows end by the call of `generate` that has begun since this was last asked; None where none has."""
        found, self._begun = self._begun, None
        return found

    def _hear_config(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._is_of(args[0]):
            config = result[0]
            self._begun = RowEnds.of(config, "stop_strings" if config.stop_strings else "")

    def _hear_criteria(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = kwargs["stopping_criteria"] if "stopping_criteria" in kwargs else args[2]
        own = [type(each).__name__ for each in given or () if type(each).__name__ not in _OF_ALL_ROWS]
        if self._begun is not None and own and self._is_of(args[0]):
            others = " and ".join(filter(None, ["stopping_criteria", self._begun.others]))
            self._begun = replace(self._begun, others=others)

    def _is_of(self, model: nn.Module) -> bool:
        """Whether a model holds the stack."""
        return any(part is self._stack for part in model.modules())


def _ids(given: Any) -> tuple[int, ...]:
    """Token ids given as a number, or as numbers in a list, an array or a tensor; none for None."""
    return () if given is None else tuple(torch.as_tensor(given).reshape(-1).tolist())
