"""Texts to trace: check and tokenize them, and cut them into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qwenlab.arguments import integer
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.generate import Generated
from qwenlab.speculative.prompts import Prompt, check_labels, context_length, tokenize

End = Literal["eos", "length", "open"]

NO_LIMIT = -1
"""The limit of a text that was not generated."""


@dataclass(frozen=True)
class Passage:
    """Tokens that are read as one sequence: a text, or a window of a text.

    begin  place of the first token that counts as emitted: 1, or the length of the prompt
    end    why it ends: "eos", "length", or "open" (it continues, or this is not known)
    limit  maximum length of a generated text; NO_LIMIT for others
    start  place of a window's first token in its text
    """

    tokens: list[int]
    begin: int = 1
    label: str = ""
    end: End = "open"
    limit: int = NO_LIMIT
    start: int = 0


def passages_of(
    checkpoint: Checkpoint,
    texts: Prompt | Sequence[Prompt] | Generated,
    *,
    labels: Sequence[str] | None = None,
    window: int | None = None,
) -> list[Passage]:
    """Texts as passages, in order; the arguments are those of `trace`.

    Raises BadPrompt for a text of fewer than two tokens or longer than the model's context, and BadArgument.
    """
    if window is not None:
        integer("trace", "window", window, least=2, unit="tokens")
    passages = list(_from_generated(texts) if isinstance(texts, Generated) else _from_texts(checkpoint, texts))
    if labels is not None:
        names = check_labels(labels, len(passages), "text")
        passages = [replace(passage, label=name) for passage, name in zip(passages, names, strict=True)]
    if isinstance(texts, Generated) and window is not None and any(len(text.tokens) > window for text in passages):
        raise BadArgument(
            f"window={window} would cut generated texts: the model wrote them after the whole text before, so in a "
            "window they are not its own output.\n"
            "Leave window out, or give generated.tokens to trace them as existing texts."
        )
    context = context_length(checkpoint)
    pieces = []
    for text in passages:
        size = window or len(text.tokens)
        starts = range(0, len(text.tokens), size)
        pieces += [replace(text, tokens=text.tokens[start : start + size], start=start) for start in starts]
    for number, piece in enumerate(pieces):
        if len(piece.tokens) > context:
            subject = "Windows have" if window else f"Text {number} has"
            raise BadPrompt(
                f"{subject} {len(piece.tokens):,} tokens, more than the model's context of {context:,}.\n"
                f"Give window={context} or less: longer texts are then cut, and each window is read separately."
            )
    return pieces


def _from_texts(checkpoint: Checkpoint, texts: Prompt | Sequence[Prompt]) -> Iterator[Passage]:
    for number, tokens in enumerate(tokenize(checkpoint, texts, "text")):
        if len(tokens) < 2:
            raise BadPrompt(
                f"Text {number} has {len(tokens) or 'no'} token{'s' if not tokens else ''}, and the head drafts from a "
                "token and the hidden state of the one before it.\nGive at least two tokens."
            )
        yield Passage(tokens)


def _from_generated(generated: Generated) -> Iterator[Passage]:
    """The generated texts, without one that was interrupted before its first emitted token."""
    texts = zip(generated.tokens, generated.begin, generated.labels, generated.ended, strict=True)
    for tokens, begin, label, ended in texts:
        if len(tokens) > begin:
            end: End = "eos" if ended == "eos" else "length" if ended == "length" else "open"
            yield Passage(tokens, begin, label, end, limit=begin + generated.max_new_tokens)
