"""Read attention masks: find the real tokens of a forward pass, and check that each row is one sequence."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch

from qwenlab.errors import AmbiguousSequences


class MaskChecks:
    """Checks the values in masks and positions.

    at_once  types of device whose values are checked at once. Others are checked by `settle`, since reading them
             inside the forward pass would make the host wait for the device
    """

    def __init__(self, at_once: Container[str] = ("cpu",)) -> None:
        self._at_once, self._pending = at_once, dict[str, torch.Tensor]()

    def refuse(self, wrong: torch.Tensor, message: str) -> None:
        """Raise AmbiguousSequences, at once or in `settle`, if `wrong`, bool [], is true."""
        if wrong.device.type not in self._at_once:
            self._pending[message] = wrong | self._pending.get(message, torch.zeros_like(wrong))
        elif wrong:
            raise AmbiguousSequences(message)

    def settle(self) -> None:
        """Run the pending checks. Raises AmbiguousSequences."""
        pending, self._pending = self._pending, {}
        for message, wrong in pending.items():
            if wrong:
                raise AmbiguousSequences(message)

    def check(self, arguments: Mapping[str, Any], keys: torch.Tensor | None, width: int) -> None:
        """Check the arguments of a forward pass of `width` columns: its mask `keys` and its position_ids."""
        if keys is not None and keys.dtype != torch.bool:
            self.refuse(
                ((keys != 0) & (keys != 1)).any(),
                "The attention_mask has values other than 0 and 1. A DeltaNet layer multiplies hidden states by them; "
                "document numbers in a packed row do not separate documents.\nPass 1 for real tokens and 0 for "
                "padding, one sequence per row.",
            )
        if arguments.get("cu_seq_lens_q") is not None:
            raise AmbiguousSequences(f"{_PACKED} (it got cu_seq_lens_q).\n{_ONE_PER_ROW}")
        positions = arguments.get("position_ids")
        if isinstance(positions, torch.Tensor) and width > 1:
            step = _steps(positions, None if keys is None else keys[:, -width:])
            self.refuse(
                (step < 1).any(),
                f"{_PACKED} (position_ids start again). An attention_mask of ones does not separate them: states and "
                f"attention continue from one to the next.\n{_ONE_PER_ROW}",
            )
            self.refuse(
                (step > 1).any(),
                "The position_ids of a row skip positions. Without an attention_mask transformers treats a skip as "
                "the border between packed sequences, and probes number tokens without gaps.\n"
                "Leave position_ids out, or count them up by 1 per real token.",
            )


_PACKED = "This forward pass packs several sequences into a row"
_ONE_PER_ROW = "Probes and interventions need one sequence per row: pass a padded batch with its attention_mask."


def _steps(positions: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Return int [batch, position - 1]: the step in position from each real token to the next; 1 next to padding.

    positions  int [batch, position]; [4, batch, position] with those of the text first; or [3, batch, position] (time,
               height, width): tokens of one image share a time, and text after it begins later, so there only a
               decrease counts, as a step of 0
    real       [batch, position], nonzero for real tokens; None when all are
    """
    step = (positions[0] if positions.ndim == 3 else positions).diff(dim=-1)
    if positions.ndim == 3 and positions.shape[0] == 3:
        step = (step >= 0).to(step.dtype)
    if real is None:
        return step
    both = real[:, 1:].bool() & real[:, :-1].bool()
    return torch.where(both.to(step.device), step, 1)


def keys_of(mask: Any, batch: int, columns: int) -> torch.Tensor | None:
    """Return [batch, column], nonzero for the real columns of this attention_mask; None without a mask.

    Raises AmbiguousSequences for a mask of another shape.
    """
    if isinstance(mask, dict) and "full_attention" in mask:
        # `generate` makes masks beforehand for a static cache; in its batches the last query sees every real key.
        mask = mask["full_attention"]
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            mask = mask[:, 0, -1, :columns]
            mask = mask if mask.dtype == torch.bool else mask == 0  # eager adds its mask to the scores
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape != (batch, columns):
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise AmbiguousSequences(
            f"The attention_mask is {shape}; "
            f"probes need one of [batch, past + position] = [{batch}, {columns}] to find padding.\n"
            "Pass that mask (1 for real tokens, 0 for padding), or none for a batch without padding."
        )
    return mask
