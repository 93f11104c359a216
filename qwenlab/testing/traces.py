"""Random draft traces with planted effects; no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

EOS = 0
"""End-of-text token of random texts."""

_WORDS = 50
_CORRELATION = 0.8  # of the difficulties of neighbouring tokens
_AFTER_ERROR = 0.1  # probability of a correct draft after a wrong one


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
    ease                   log odds of a correct first draft in a text of the first label
    ended                  fraction of texts that end with an end-of-text token
    text                   "own": the target model chose the tokens; "teacher_forced": it would choose some others
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(max(prompt + 2, length // 2), max(prompt + 2, length) + 1, texts)
    kinds = np.arange(texts) * len(labels) // texts
    ends = np.where(rng.random(texts) < ended, "eos", "length" if text == "own" else "open")
    parts = [
        _text(rng, int(n), prompt, depth, ease - kind, end == "eos", text == "own")
        for n, kind, end in zip(lengths, kinds, ends, strict=True)
    ]
    data: dict[str, Any] = {
        "text": ("token", np.repeat(np.arange(texts), lengths)),
        "position": ("token", np.concatenate([np.arange(n) for n in lengths])),
        "begin": ("text", np.full(texts, prompt)),
        "length": ("text", lengths),
        "limit": ("text", np.select([ends == "eos", ends == "length"], [lengths + length, lengths], -1)),
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
    """Variables of one text, [token] or [token, draft]."""
    word = rng.integers(1, _WORDS, tokens)
    word[-1] = EOS if ends else word[-1]
    target = np.append(word[1:], rng.integers(1, _WORDS))
    other = np.arange(tokens) < prompt - 1 if own else rng.random(tokens) < 0.3
    target = np.where(other, rng.integers(1, _WORDS, tokens), target)
    hardness = np.zeros(tokens + depth)
    noise = rng.normal(0, np.sqrt(1 - _CORRELATION**2), tokens + depth)
    for at in range(1, tokens + depth):
        hardness[at] = _CORRELATION * hardness[at - 1] + noise[at]
    entropy = np.log1p(np.exp(hardness[:tokens] - ease))
    draft, probability, main = (np.zeros((tokens, depth)) for _ in range(3))
    correct = np.full(tokens, True)
    for step in range(depth):
        place = np.arange(tokens) + step  # index of the target model's prediction for this draft's place
        odds = ease - 0.3 * step - 1.5 * hardness[place]
        correct = rng.random(tokens) < np.where(correct, 1 / (1 + np.exp(-odds)), _AFTER_ERROR)
        there = np.where(place < tokens, target[np.minimum(place, tokens - 1)], 1 + place % (_WORDS - 1))
        draft[:, step] = np.where(correct, there, 1 + there % (_WORDS - 1))
        probability[:, step] = 1 / (1 + np.exp(-odds - rng.normal(0, 0.7, tokens)))
        sure = np.exp(-entropy[np.minimum(place, tokens - 1)])
        main[:, step] = np.where(place < tokens, np.where(correct, sure, (1 - sure) / 2), np.nan)
    draft[0], probability[0], main[0] = -1, np.nan, np.nan  # nothing to draft from before the first token
    return {
        "token": word,
        "target_token": target,
        "target_entropy": entropy,
        "next_logprob": np.append(np.where(other[:-1], -3.0, -entropy[:-1]), np.nan),
        "draft_token": draft.astype(np.int64),
        "draft_probability": probability,
        "target_probability": main,
    }
