"""A long text cut into passages of so many tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from qwenlab.checkpoint.open import require_checkpoint
from qwenlab.errors import BadArgument


def passages(checkpoint: Any, text: str, *, tokens: int = 512, count: int | None = None) -> list[str]:
    """The first `count` passages of a text, or all: `tokens` tokens each, the last one shorter.

    Cut where a token begins, so that nothing is lost or added: together the passages are the text, or its beginning.
    Raises BadArgument for a text without tokens.
    """
    if tokens < 1:
        raise BadArgument(f"passages(tokens={tokens}): give at least 1.")
    require_checkpoint(checkpoint)
    starts = [start for start, _ in checkpoint.tokenizer(text, return_offsets_mapping=True).offset_mapping]
    if not starts:
        raise BadArgument("passages(checkpoint, text): the text has no tokens.")
    cuts = [0, *starts[tokens::tokens], len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts) if end > begin][:count]
