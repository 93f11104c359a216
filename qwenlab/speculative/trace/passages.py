"""What is given to be traced: checked, as tokens, and cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qwenlab.checkpoint.open import Checkpoint
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.generate import Generated
from qwenlab.speculative.prompts import Prompt, context_of

End = Literal["eos", "length", "open"]

PLAIN = -1
"""The limit of a text that was not generated: it ends where it ends."""


@dataclass(frozen=True)
class Passage:
    """One stretch of tokens that is read for itself: a text, or a window of one.

    begin  the place of the first token that counts as emitted: 1, or the length of the prompt
    end    why it ends: "eos", "length", or "open" (it goes on, or nobody knows)
    limit  the length at which a generated text is cut; PLAIN for others
    start  the place of its first token in the text it is a window of
    """

    tokens: list[int]
    begin: int = 1
    label: str = ""
    end: End = "open"
    limit: int = PLAIN
    start: int = 0


def passages_of(
    checkpoint: Checkpoint,
    texts: Prompt | Sequence[Prompt] | Generated,
    *,
    labels: Sequence[str] | None = None,
    window: int | None = None,
) -> list[Passage]:
    """Texts as passages in their order.

    texts   strings, token lists, or what `generate` returned; one may stand without a list around it
    labels  what each text is called; by default "", or as the generated text is called
    window  tokens of the longest passage: longer texts are cut. Texts that were generated are not

    Raises BadPrompt for a text of less than two tokens, or one beyond the model's context, and BadArgument.
    """
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 2):
        raise BadArgument(f"window={window!r}: give a whole number of tokens, 2 or more, or leave it out.")
    found = list(_generated(texts)) if isinstance(texts, Generated) else list(_plain(checkpoint, texts))
    if labels is not None:
        if isinstance(labels, str) or len(labels) != len(found):
            raise BadArgument(f"labels: give a name for each of the {len(found)} texts, in a list.")
        found = [replace(each, label=str(label)) for each, label in zip(found, labels, strict=True)]
    if isinstance(texts, Generated) and window is not None and any(len(each.tokens) > window for each in found):
        raise BadArgument(
            f"window={window} would cut texts that were generated: what a model wrote with all of the text before it "
            "is not its own text in a window.\nLeave window out, or give generated.tokens to trace them as given texts."
        )
    room = context_of(checkpoint)
    cut = [piece for each in found for piece in (_windows(each, window) if window else (each,))]
    for number, each in enumerate(cut):
        if len(each.tokens) > room:
            raise BadPrompt(
                f"{'Windows have' if window else f'Text {number} has'} {len(each.tokens):,} tokens, which is more than "
                f"the model's context of {room:,}.\n"
                f"Give window={room} or less: longer texts are then cut, and each window is read for itself."
            )
    return cut


def _plain(checkpoint: Checkpoint, texts: Prompt | Sequence[Prompt]) -> Iterator[Passage]:
    several = [texts] if isinstance(texts, str) or (len(texts) and isinstance(texts[0], int)) else texts
    if not len(several):
        raise BadPrompt("There is no text.\nGive a string, a list of tokens, or a list of such.")
    for number, text in enumerate(several):
        tokens = checkpoint.tokenizer(text)["input_ids"] if isinstance(text, str) else [*map(int, text)]  # type: ignore[arg-type]
        if len(tokens) < 2:
            raise BadPrompt(
                f"Text {number} has {len(tokens) or 'no'} token{'s' if not tokens else ''}, and the head drafts from a "
                "token and the hidden state of the one before it.\nGive at least two tokens."
            )
        yield Passage(tokens)


def _generated(made: Generated) -> Iterator[Passage]:
    """Its texts, but for one whose prompt was read and nothing emitted when it was interrupted."""
    for tokens, begin, label, ended in zip(made.tokens, made.begin, made.labels, made.ended, strict=True):
        if len(tokens) > begin:
            end: End = "eos" if ended == "eos" else "length" if ended == "length" else "open"
            yield Passage(tokens, begin, label, end, limit=begin + made.max_new_tokens)


def _windows(text: Passage, size: int) -> Iterator[Passage]:
    """The text in stretches of `size` tokens, the last one shorter."""
    for start in range(0, len(text.tokens), size):
        yield replace(text, tokens=text.tokens[start : start + size], start=start)
