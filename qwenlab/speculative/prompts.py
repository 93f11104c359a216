"""What is given to be decoded: checked, and as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qwenlab.checkpoint.open import Checkpoint
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.context import device_of

Prompt = str | Sequence[int]


def encoded(checkpoint: Checkpoint, prompts: Prompt | Sequence[Prompt], max_new_tokens: int) -> list[torch.Tensor]:
    """Every prompt as tokens, int [token] where the embedding is; one prompt may stand without a list around it.

    Raises BadPrompt for one that is empty, or that leaves no room in the model's context for `max_new_tokens`.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise BadArgument(f"max_new_tokens={max_new_tokens!r}: give a whole number of tokens, 1 or more.")
    several = [prompts] if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int)) else prompts
    if not len(several):
        raise BadPrompt("There is no prompt.\nGive a string, a list of tokens, or a list of such.")
    room, device = context_of(checkpoint), device_of(checkpoint.model)
    found = []
    for number, prompt in enumerate(several):
        tokens = checkpoint.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else [*map(int, prompt)]  # type: ignore[arg-type]
        if not tokens:
            raise BadPrompt(
                f"Prompt {number} is empty, and the first token cannot be predicted from nothing.\n"
                "Give it at least one token."
            )
        if len(tokens) + max_new_tokens > room:
            raise BadPrompt(
                f"Prompt {number} has {len(tokens):,} tokens; with max_new_tokens={max_new_tokens:,} that is more than "
                f"the model's context of {room:,}.\nCut the prompt, or ask for fewer tokens."
            )
        found.append(torch.tensor(tokens, dtype=torch.long, device=device))
    return found


def context_of(checkpoint: Checkpoint) -> int:
    """Tokens of the longest text that the model was made for."""
    config: Any = checkpoint.model.get_decoder().config
    return int(config.max_position_embeddings)


def checked_depth(depth: Any, room: int) -> int:
    """Refuse a depth that drafts nothing, or beyond the context of `room` tokens."""
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth < room:
        raise BadArgument(
            f"depth={depth!r}: give a whole number of drafts a round, 1 or more and under the context of {room:,}.\n"
            "To decode without drafts, use model.generate."
        )
    return depth


def end_tokens_of(checkpoint: Checkpoint) -> list[int]:
    """Every token that ends a text, by the model's generation_config."""
    config: Any = checkpoint.model.generation_config
    ends = config.eos_token_id if config is not None else None
    return [ends] if isinstance(ends, int) else list(ends or ())
