"""Check and tokenize prompts; look up the context length and the end tokens of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from qwenlab.arguments import integer
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.context import input_device

Prompt = str | Sequence[int]


def encode_prompts(
    checkpoint: Checkpoint, prompts: Prompt | Sequence[Prompt], max_new_tokens: int, *, where: str = "generate"
) -> list[torch.Tensor]:
    """Tokenize prompts: int [token] each, on the device of the embedding. A single prompt needs no list.

    Raises BadPrompt for an empty prompt and for one that leaves no space in the model's context for `max_new_tokens`,
    and BadArgument for a `max_new_tokens` that is not a positive integer; `where` names the caller in that message.
    """
    integer(where, "max_new_tokens", max_new_tokens, least=1, unit="tokens")
    length, device = context_length(checkpoint), input_device(checkpoint.model)
    encoded = []
    for number, tokens in enumerate(tokenize(checkpoint, prompts, "prompt")):
        if not tokens:
            raise BadPrompt(
                f"Prompt {number} is empty, and the first token cannot be predicted from nothing.\n"
                "Give it at least one token."
            )
        if len(tokens) + max_new_tokens > length:
            raise BadPrompt(
                f"Prompt {number} has {len(tokens):,} tokens; with max_new_tokens={max_new_tokens:,} that is more than "
                f"the model's context of {length:,}.\nShorten the prompt, or reduce max_new_tokens."
            )
        encoded.append(torch.tensor(tokens, dtype=torch.long, device=device))
    return encoded


def tokenize(checkpoint: Checkpoint, texts: Prompt | Sequence[Prompt], noun: str) -> Iterator[list[int]]:
    """Token lists of one text or several. Raises BadPrompt for an empty list; `noun` names a text in messages."""
    several = [texts] if isinstance(texts, str) or (len(texts) and isinstance(texts[0], int)) else texts
    if not len(several):
        raise BadPrompt(f"There is no {noun}.\nGive a string, a list of tokens, or a list of strings or token lists.")
    for text in several:
        yield checkpoint.tokenizer(text)["input_ids"] if isinstance(text, str) else [*map(int, text)]  # type: ignore[arg-type]


def check_labels(labels: Sequence[str], count: int, noun: str) -> list[str]:
    """Labels as strings, one for each of `count` texts; raises BadArgument for another number or a bare string."""
    if isinstance(labels, str) or len(labels) != count:
        raise BadArgument(f"labels: give a list of {count} names, one for each {noun}.")
    return [str(label) for label in labels]


def context_length(checkpoint: Checkpoint) -> int:
    """Length of the longest text that the model supports [tokens]."""
    config: Any = checkpoint.model.get_decoder().config
    return int(config.max_position_embeddings)


def drafting_head(checkpoint: Checkpoint | MtpHead, depth: Any) -> MtpHead:
    """The MTP head of an open checkpoint, which is to make chains of `depth` drafts.

    Raises NoMtpHead, and BadArgument for a depth that drafts nothing or exceeds the model's context.
    """
    if isinstance(checkpoint, MtpHead):
        head = checkpoint
    else:
        require_checkpoint(checkpoint)
        head = checkpoint.require_mtp()
    context = int(head.config.max_position_embeddings)
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth < context:
        raise BadArgument(
            f"depth={depth!r}: give an integer number of drafts per round, 1 or more and below the context of "
            f"{context:,}.\nTo decode without drafts, use model.generate."
        )
    return head


def end_tokens_of(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end a text, from the model's generation_config."""
    config: Any = checkpoint.model.generation_config
    ends = config.eos_token_id if config is not None else None
    return [ends] if isinstance(ends, int) else list(ends or ())
