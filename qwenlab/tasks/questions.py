"""Where recall texts ask, and where their answers stand: positions in tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument

_PAIR = re.compile(r" (\w):(\w)")
_QUESTION = re.compile(r" (\w)(\?)(\w)")


def recall_questions(checkpoint: Any, texts: Sequence[str]) -> xr.Dataset:
    """Where each question of some recall texts stands, and the value of each pair that the text lists before it.

    text   [question]        the text's number in `texts`
    query  [question]        position of the question mark's token: what comes after it is the answer
    asked  [question]        the number of the pair that is asked for
    value  [question, pair]  position of the token of each pair's value in the list; -1 where the text has fewer pairs

    Positions count tokens as the checkpoint's tokenizer makes them of the whole text, from 0.

    Raises BadArgument for what is no text of `recall_texts`, and for a tokenizer that joins a question mark with the
    answer after it, so that the answer is never due.
    """
    found = [(number, *each) for number, text in enumerate(texts) for each in _questions(checkpoint, number, text)]
    if not found:
        raise BadArgument("recall_questions(checkpoint, texts): give a list of at least one recall text.")
    numbers, query, asked, values = zip(*found, strict=True)
    value = np.full((len(found), max(map(len, values))), -1)
    for row, held in zip(value, values, strict=True):
        row[: len(held)] = held
    position = {"units": "token", "long_name": "position of the token"}
    return xr.Dataset(
        {
            "text": ("question", np.array(numbers), {"units": "1", "long_name": "number of the text"}),
            "query": ("question", np.array(query), position),
            "asked": ("question", np.array(asked), {"units": "1", "long_name": "number of the pair"}),
            "value": (("question", "pair"), value, position),
        }
    )


def _questions(checkpoint: Any, number: int, text: str) -> Iterator[tuple[int, int, list[int]]]:
    """The query's position, the number of the pair asked for, and the positions of all values, of each question."""
    listed, _, rest = text.partition("\n")
    pairs, questions = list(_PAIR.finditer(listed)), list(_QUESTION.finditer(rest))
    keys = [pair[1] for pair in pairs]
    written = "".join(pair[0] for pair in pairs) + "\n" + "".join(each[0] for each in questions) + "\n"
    if text != written or not questions or not {each[1] for each in questions} <= set(keys):
        raise BadArgument(
            f"Text {number} is no recall text: {text[:40]!r}.\n"
            "Give what qwenlab.tasks.recall_texts returns, whole: ' a:3 k:7', a new line, ' k?7 a?3', a new line."
        )
    offsets = checkpoint.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    token = {place: index for index, (begin, end) in enumerate(offsets) for place in range(begin, end)}
    values = [token[pair.start(2)] for pair in pairs]
    for each in questions:
        mark, answer = (token[len(listed) + 1 + each.start(part)] for part in (2, 3))
        if mark == answer:
            raise BadArgument(f"This tokenizer makes one token of {each[0]!r}: after no token is the answer due.")
        yield mark, keys.index(each[1]), values
