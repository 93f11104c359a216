"""Random traces with planted effects. No model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

EOS = 0
"""The end-of-text token of made texts."""

_WORDS = 50
_STAYS = 0.8  # correlation of the difficulties of neighbouring tokens
_ASTRAY = 0.1  # probability of a right draft after a wrong one


def made_trace(
    *,
    seed: int = 0,
    labels: Sequence[str] = ("code", "prose"),
    texts: int = 12,
    length: int = 120,
    prompt: int = 8,
    depth: int = 4,
    ease: float = 1.5,
    ended: float = 0.5,
    text: str = "own",
) -> xr.Dataset:
    """A random trace (node "trace") in which neighbouring tokens are similarly hard to draft.

    labels, texts, length  `texts` texts of `length` / 2 to `length` tokens; each label has one block of them, and the
                           texts of a later label are harder
    prompt                 number of prompt tokens
    ease                   log odds of a right first draft in a text of the first label
    ended                  fraction of texts that end with an end-of-text token
    text                   "own": the main model chose the tokens; "teacher_forced": it would have chosen others in part
    """
    rng = np.random.default_rng(seed)
    many = rng.integers(max(prompt + 2, length // 2), max(prompt + 2, length) + 1, texts)
    kinds = np.arange(texts) * len(labels) // texts
    ends = np.where(rng.random(texts) < ended, "eos", "length" if text == "own" else "open")
    parts = [
        _text(rng, int(n), prompt, depth, ease - kind, end == "eos", text == "own")
        for n, kind, end in zip(many, kinds, ends, strict=True)
    ]
    data: dict[str, Any] = {
        "text": ("token", np.repeat(np.arange(texts), many)),
        "position": ("token", np.concatenate([np.arange(n) for n in many])),
        "begin": ("text", np.full(texts, prompt)),
        "length": ("text", many),
        "limit": ("text", np.select([ends == "eos", ends == "length"], [many + length, many], -1)),
        "start": ("text", np.zeros(texts, dtype=np.int64)),
        "label": ("text", np.array(labels, object)[kinds]),
        "end": ("text", ends.astype(object)),
    }
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        data[name] = (("token", "draft")[: values.ndim], values)
    return xr.Dataset(data, {"draft": np.arange(1, depth + 1)}, {"depth": depth, "text": text, "window": 0})


def _text(
    rng: np.random.Generator, tokens: int, prompt: int, depth: int, ease: float, ends: bool, own: bool
) -> dict[str, np.ndarray]:
    """The variables of one text, [token] or [token, draft]."""
    word = rng.integers(1, _WORDS, tokens)
    word[-1] = EOS if ends else word[-1]
    target = np.append(word[1:], rng.integers(1, _WORDS))
    other = np.arange(tokens) < prompt - 1 if own else rng.random(tokens) < 0.3
    target = np.where(other, rng.integers(1, _WORDS, tokens), target)
    hardness = np.zeros(tokens + depth)
    noise = rng.normal(0, np.sqrt(1 - _STAYS**2), tokens + depth)
    for at in range(1, tokens + depth):
        hardness[at] = _STAYS * hardness[at - 1] + noise[at]
    entropy = np.log1p(np.exp(hardness[:tokens] - ease))
    draft, probability, main = (np.zeros((tokens, depth)) for _ in range(3))
    right = np.full(tokens, True)
    for step in range(depth):
        place = np.arange(tokens) + step  # index of the main model's prediction for this draft's place
        odds = ease - 0.3 * step - 1.5 * hardness[place]
        right = rng.random(tokens) < np.where(right, 1 / (1 + np.exp(-odds)), _ASTRAY)
        there = np.where(place < tokens, target[np.minimum(place, tokens - 1)], 1 + place % (_WORDS - 1))
        draft[:, step] = np.where(right, there, 1 + there % (_WORDS - 1))
        probability[:, step] = 1 / (1 + np.exp(-odds - rng.normal(0, 0.7, tokens)))
        sure = np.exp(-entropy[np.minimum(place, tokens - 1)])
        main[:, step] = np.where(place < tokens, np.where(right, sure, (1 - sure) / 2), np.nan)
    draft[0], probability[0], main[0] = -1, np.nan, np.nan  # before the first token there is nothing to draft from
    return {
        "token": word,
        "target_token": target,
        "target_entropy": entropy,
        "next_logprob": np.append(np.where(other[:-1], -3.0, -entropy[:-1]), np.nan),
        "draft_token": draft.astype(np.int64),
        "draft_probability": probability,
        "target_probability": main,
    }
