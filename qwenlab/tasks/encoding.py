"""A text as tokens, with the place of each in the text and its share of the text's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwenlab.checkpoint.open import require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import several, whole
from qwenlab.tasks.task import Task


@dataclass(frozen=True)
class Encoded:
    """A text's tokens, the last ones cut off where it is too long.

    tokens  ids
    spans   characters [begin, end) of the text that each token is of; tokens that share a character both have it
    bytes   UTF-8 bytes of the text [token], int64: those up to the token's end that no token before it had. So they
            add up to the text's, whatever the tokenizer normalises, drops, or makes of parts of a character
    """

    text: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    bytes: np.ndarray


def encoded(checkpoint: Any, text: str, max_tokens: int | None = None) -> Encoded:
    """The text by the checkpoint's own tokenizer, as it is by default: with special tokens where it adds such."""
    require_checkpoint(checkpoint)
    found = checkpoint.tokenizer(text, return_offsets_mapping=True)
    spans = [(int(begin), int(end)) for begin, end in found.offset_mapping]
    ends = np.maximum.accumulate([end for _, end in spans] or [0])[: len(spans)]
    if len(ends) and (max_tokens is None or len(spans) <= max_tokens):
        ends[-1] = len(text)
    sizes = np.diff(_bytes_until(text, ends[:max_tokens]), prepend=0)
    return Encoded(text, tuple(found.input_ids[:max_tokens]), tuple(spans[:max_tokens]), sizes)


def all_encoded(checkpoint: Any, texts: Sequence[str], where: str, max_tokens: int | None) -> list[Encoded]:
    """Each of the texts; raises BadArgument for one in which no token follows another, in the name of `where`."""
    if max_tokens is not None:
        whole(where, least=2, max_tokens=max_tokens)
    found = [encoded(checkpoint, text, max_tokens) for text in several(where, texts)]
    if short := [index for index, each in enumerate(found) if len(each.tokens) < 2]:
        raise BadArgument(
            f"{where}: texts {short[:8]} have fewer than two tokens, and the first one is not predicted.\n"
            "Leave them out, or join them with others."
        )
    return found


def text_task(checkpoint: Any, texts: Sequence[str], *, name: str, max_tokens: int | None = 512) -> Task:
    """Texts of the user's as a task: every token but the first of each is asked for, and has its bytes.

    max_tokens  longer texts are cut after so many. Raises BadArgument for a text of fewer than two tokens
    """
    found = all_encoded(checkpoint, texts, "text_task", max_tokens)
    return plain_task(found, name)


def plain_task(texts: Sequence[Encoded], name: str) -> Task:
    """The task that asks for all tokens of some texts but the first ones."""
    return Task(
        name,
        tokens=tuple(each.tokens for each in texts),
        asked=tuple(tuple(range(1, len(each.tokens))) for each in texts),
        bytes=tuple(int(each.bytes[1:].sum()) for each in texts),
    )


def _bytes_until(text: str, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes before each of these places of the text, int64."""
    sizes = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
    return np.concatenate([[0], np.cumsum(sizes)])[ends].astype(np.int64)
