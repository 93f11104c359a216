"""Cut a long text into passages of equal length in tokens."""

from __future__ import annotations

from itertools import pairwise

from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument


def passages(checkpoint: Checkpoint, text: str, *, tokens: int = 512, count: int | None = None) -> list[str]:
    """The first `count` passages of a text, or all of them: `tokens` tokens each, the last one shorter.

    Cuts are where tokens begin, so that the passages joined are the text, or its beginning. Raises BadArgument for a
    text without tokens.
    """
    if tokens < 1:
        raise BadArgument(f"passages(tokens={tokens}): give at least 1.")
    require_checkpoint(checkpoint)
    starts = [start for start, _ in checkpoint.tokenizer(text, return_offsets_mapping=True).offset_mapping]
    if not starts:
        raise BadArgument("passages(checkpoint, text): the text has no tokens.")
    cuts = [0, *starts[tokens::tokens], len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts) if end > begin][:count]
