"""Texts as tokens: the characters and bytes of each token, passages of equal length, and padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import list_of_texts, whole
from qwenlab.tasks.task import Task


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text, up to a largest number.

    tokens  ids
    spans   characters [begin, end) of the text for each token; tokens that share a character both have it
    bytes   UTF-8 bytes that each token adds, int64 [token]: those up to its end that no earlier token has. They add up
            to the bytes of the text, also if the tokenizer normalises or drops characters, or splits them
    """

    text: str
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    bytes: np.ndarray


def encoded(checkpoint: Checkpoint, text: str, max_tokens: int | None = None) -> Encoded:
    """A text as the checkpoint's tokenizer encodes it by default, with the special tokens that it adds."""
    require_checkpoint(checkpoint)
    found = checkpoint.tokenizer(text, return_offsets_mapping=True)
    spans = [(int(begin), int(end)) for begin, end in found.offset_mapping]
    ends = np.maximum.accumulate([end for _, end in spans] or [0])[: len(spans)]
    if len(ends) and (max_tokens is None or len(spans) <= max_tokens):
        ends[-1] = len(text)
    sizes = np.diff(_bytes_until(text, ends[:max_tokens]), prepend=0)
    return Encoded(text, tuple(found.input_ids[:max_tokens]), tuple(spans[:max_tokens]), sizes)


def all_encoded(checkpoint: Checkpoint, texts: Sequence[str], where: str, max_tokens: int | None) -> list[Encoded]:
    """Every text as tokens; raises BadArgument for a text of fewer than two, in the name of the function `where`."""
    if max_tokens is not None:
        whole(where, least=2, max_tokens=max_tokens)
    found = [encoded(checkpoint, text, max_tokens) for text in list_of_texts(where, texts)]
    if short := [index for index, each in enumerate(found) if len(each.tokens) < 2]:
        raise BadArgument(
            f"{where}: texts {short[:8]} have fewer than two tokens, and the first one is not predicted.\n"
            "Leave them out, or join them with others."
        )
    return found


def text_task(
    checkpoint: Checkpoint, texts: Sequence[str], *, name: str = "text", max_tokens: int | None = 512
) -> Task:
    """Plain texts as a task: every token but the first of each text is asked for, up to `max_tokens`.

    Raises BadArgument for a text of fewer than two tokens.
    """
    return task_of(all_encoded(checkpoint, texts, "text_task", max_tokens), name)


def task_of(texts: Sequence[Encoded], name: str) -> Task:
    """The task that asks for every token but the first of each text."""
    return Task(
        name,
        tokens=tuple(each.tokens for each in texts),
        asked=tuple(tuple(range(1, len(each.tokens))) for each in texts),
        bytes=tuple(int(each.bytes[1:].sum()) for each in texts),
    )


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


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of sequences, int64 [sequence, position] each, padded on the right."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences], device=device)
    return ids, mask


def _bytes_until(text: str, ends: np.ndarray) -> np.ndarray:
    """UTF-8 bytes before each of these character positions of the text, int64."""
    sizes = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
    return np.concatenate([[0], np.cumsum(sizes)])[ends].astype(np.int64)
