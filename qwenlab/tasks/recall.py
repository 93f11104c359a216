"""Associative recall as text: key-value pairs are listed, then asked for. The toy checkpoints were trained on it.

A text reads ` a:3 k:7 B:0`, then a new line and the questions ` k?7 a?3`. Keys are the 52 letters, values the 10
digits, so a guess is right with probability 0.1.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument
from qwenlab.tasks.task import Task

KEYS = string.ascii_letters
VALUES = string.digits

_PAIR = re.compile(r" (\w):(\w)")
_QUESTION = re.compile(r" (\w)(\?)(\w)")


def recall_text(pairs: int, questions: int, rng: random.Random) -> str:
    """One recall text: `pairs` pairs with distinct keys, then `questions` keys, each with the answer."""
    if not 1 <= pairs <= len(KEYS):
        raise BadArgument(f"pairs={pairs} is not possible: there is one letter a key.\nAsk for 1 to {len(KEYS)} pairs.")
    memory = {key: rng.choice(VALUES) for key in rng.sample(KEYS, pairs)}
    asked = _keys_in_turn(list(memory), questions, rng)
    return "".join(f" {k}:{v}" for k, v in memory.items()) + "\n" + "".join(f" {k}?{memory[k]}" for k in asked) + "\n"


def recall_texts(pairs: int, count: int, *, questions: int | None = None, seed: int = 0) -> list[str]:
    """`count` independent recall texts. By default each pair is asked for once, in random order."""
    rng = random.Random(f"recall-{seed}-{pairs}")
    return [recall_text(pairs, pairs if questions is None else questions, rng) for _ in range(count)]


def recall_task(checkpoint: Checkpoint, texts: Sequence[str], *, name: str = "recall") -> Task:
    """Recall texts as a task: the value after each question mark is asked for, with chance 0.1.

    If every pair is asked for once (`recall_texts` without `questions`), no answer can be copied from an earlier one.
    Raises what `recall_questions` raises.
    """
    questions = recall_questions(checkpoint, texts)
    answers = [questions["query"].values[questions["text"].values == index] + 1 for index in range(len(texts))]
    return Task(
        name,
        tokens=tuple(tuple(checkpoint.tokenizer(text).input_ids) for text in texts),
        asked=tuple(tuple(positions.tolist()) for positions in answers),
        chance=1 / len(VALUES),
    )


def recall_questions(checkpoint: Checkpoint, texts: Sequence[str]) -> xr.Dataset:
    """Token positions of the questions in recall texts, and of the values listed before them.

    text   [question]        index of the text in `texts`
    query  [question]        position of the question mark's token: the answer comes right after it
    asked  [question]        index of the pair that is asked for
    value  [question, pair]  position of the token of each pair's value in the list; -1 where the text has fewer pairs

    Positions count the tokens of the whole text from 0. Raises BadArgument for a text that is not of the format of
    `recall_texts`, and for a tokenizer that joins a question mark and the answer in one token.
    """
    found = [(index, *each) for index, text in enumerate(texts) for each in _positions(checkpoint, index, text)]
    if not found:
        raise BadArgument("recall_questions(checkpoint, texts): give a list of at least one recall text.")
    text, query, asked, values = zip(*found, strict=True)
    value = np.full((len(found), max(map(len, values))), -1)
    for row, positions in zip(value, values, strict=True):
        row[: len(positions)] = positions
    position = {"units": "token", "long_name": "position of the token"}
    return xr.Dataset(
        {
            "text": ("question", np.array(text), {"units": "1", "long_name": "number of the text"}),
            "query": ("question", np.array(query), position),
            "asked": ("question", np.array(asked), {"units": "1", "long_name": "number of the pair"}),
            "value": (("question", "pair"), value, position),
        }
    )


def _positions(checkpoint: Checkpoint, index: int, text: str) -> Iterator[tuple[int, int, list[int]]]:
    """For each question: the position of its mark, the index of its pair, and the positions of all values."""
    listed, _, rest = text.partition("\n")
    pairs, questions = list(_PAIR.finditer(listed)), list(_QUESTION.finditer(rest))
    keys = [pair[1] for pair in pairs]
    written = "".join(pair[0] for pair in pairs) + "\n" + "".join(each[0] for each in questions) + "\n"
    if text != written or not questions or not {each[1] for each in questions} <= set(keys):
        raise BadArgument(
            f"Text {index} is not a recall text: {text[:40]!r}.\n"
            "Give what qwenlab.tasks.recall_texts returns, whole: ' a:3 k:7', a new line, ' k?7 a?3', a new line."
        )
    offsets = checkpoint.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    token = {place: number for number, (begin, end) in enumerate(offsets) for place in range(begin, end)}
    values = [token[pair.start(2)] for pair in pairs]
    for each in questions:
        mark, answer = (token[len(listed) + 1 + each.start(part)] for part in (2, 3))
        if mark == answer:
            raise BadArgument(f"This tokenizer makes one token of {each[0]!r}: no token is followed by the answer.")
        yield mark, keys.index(each[1]), values


def _keys_in_turn(keys: list[str], number: int, rng: random.Random) -> Iterator[str]:
    """`number` keys in random order, each once before any comes a second time."""
    while number > 0:
        rng.shuffle(keys)
        yield from keys[:number]
        number -= len(keys)
