"""The tokens that end and fill the rows of a batched `generate`, by the model's config or by the call's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.probe.wrapping import listening

_OF_ALL_ROWS = ("MaxLengthCriteria", "MaxTimeCriteria")
"""Stopping criteria that end all rows at once."""


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
    """Follows the calls of `generate` of the model that holds a stack of layers.

    ends  how rows end now: by the call that is running, else by the model's own config
    """

    def __init__(self, module: nn.Module, stack: PreTrainedModel) -> None:
        generating = (each for each in module.modules() if vars(each).get("generation_config") is not None)
        self._owner: Any = next((each for each in generating if any(part is stack for part in each.modules())), None)
        self._stack = stack
        self._criteria = ""
        self.ends = self._usual()

    def listen(self, hooks: ExitStack) -> None:
        """Follow the calls until `hooks` closes."""
        if (owner := self._owner) is None or not hasattr(owner, "_prepare_generation_config"):
            return
        for name, how in (("generate", {"around": self._run}), ("_prepare_generation_config", {"after": self._hear})):
            held: Any = how
            hooks.enter_context(listening(vars(owner), name, getattr(owner, name), owner=owner, **held))

    def _usual(self) -> RowEnds:
        return RowEnds.of(self._stack.config if self._owner is None else self._owner.generation_config)

    def _run(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(type(self._owner).generate).bind_partial(self._owner, *args, **kwargs).arguments
        criteria = given.get("stopping_criteria") or ()
        own = any(type(each).__name__ not in _OF_ALL_ROWS for each in criteria)
        self._criteria = "stopping_criteria" if own else ""
        try:
            return generate(*args, **kwargs)
        finally:
            self._criteria, self.ends = "", self._usual()

    def _hear(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        config = result[0]
        others = [self._criteria, "stop_strings" if config.stop_strings else ""]
        self.ends = RowEnds.of(config, " and ".join(filter(None, others)))


def _ids(given: Any) -> tuple[int, ...]:
    """Token ids given as a number, or as numbers in a list, an array or a tensor; none for None."""
    return () if given is None else tuple(torch.as_tensor(given).reshape(-1).tolist())
