"""The rounds that decoding would have run along traced texts, under any depth and policy; needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qwenlab.speculative.policies import Policy, asked, name_of
from qwenlab.speculative.rounds import NONE, tabled


def replayed(trace: xr.Dataset, *, depth: int, policy: Policy | None) -> xr.Dataset:
    """The ledger of a trace, as `generate` would have kept it.

    A round at row t has x[t] as its newest token, and accepts its drafts as long as draft k is x[t + k]. It drafts as
    many as the policy asks for, `depth` at most, and one less than the tokens that may still be emitted.
    """
    made = _rounds_everywhere(trace, depth, policy)
    taken = _walked(trace, made)
    columns = _columns(trace, {name: values[taken] for name, values in made.items()}, depth)
    attrs = {
        "rule": "greedy",
        "depth": depth,
        "policy": "fixed depth" if policy is None else name_of(policy),
        "drafting": "greedy",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "rollback": "none",
        "origin": "replay",
        "text": trace.attrs["text"],
        **({"hidden": trace.attrs["hidden"]} if "hidden" in trace.attrs else {}),
    }
    return tabled(columns, attrs)


def _rounds_everywhere(trace: xr.Dataset, depth: int, policy: Policy | None) -> dict[str, np.ndarray]:
    """The round that would begin at each row that one could begin at, by its counts [row]."""
    length, begin, limit = (trace[name].values for name in ("length", "begin", "limit"))
    text, position = trace["text"].values, trace["position"].values
    row = np.flatnonzero((position >= begin[text]) & (position < length[text] - 1))
    text, position = text[row], position[row]
    left = length[text] - 1 - position  # tokens of the text after the newest one
    most = np.where(limit < 0, length, limit)[text] - 1 - position  # tokens that may be emitted
    probability = trace["draft_probability"].values[row, :depth].astype(np.float64)
    proposed, drafted = _drafted(probability, np.clip(most - 1, 0, depth), policy)

    place = np.arange(1, depth + 1)
    following = trace["token"].values[np.minimum(row[:, None] + place, trace.sizes["token"] - 1)]
    same = trace["draft_token"].values[row, :depth] == following
    accepted = np.cumprod(same & (place <= np.minimum(drafted, left)[:, None]), axis=1).sum(axis=1)
    to_the_end, eos = accepted == left, trace["end"].values[text] == "eos"
    cut = to_the_end & eos
    emitted = accepted + ~cut
    ended = np.select(
        [eos & (emitted == left), emitted == most, accepted == drafted], ["eos", "length", "full"], "rejected"
    )
    return {
        "row": row,
        "proposed": proposed,
        "drafted": drafted,
        "tested": np.where(cut, accepted, np.minimum(accepted + 1, drafted)),
        "accepted": accepted,
        "emitted": emitted,
        "ended": ended,
        "unknown": to_the_end & ~eos,  # a text that broke off: nobody knows what the main model would have added
    }


def _drafted(probability: np.ndarray, most: np.ndarray, policy: Policy | None) -> tuple[np.ndarray, np.ndarray]:
    """Drafts that the head makes, and those given to the main model, in each round [round] of at most `most`."""
    if policy is None:
        return most, most
    drops = bool(getattr(policy, "drops", False))
    questions = np.where(most > 0, most + drops, 0)  # one that takes drafts back has a say on the last one too
    proposed, stopped = np.zeros_like(most), np.zeros(len(most), dtype=bool)
    going = np.arange(len(most))
    for drafts in range(questions.max(initial=0)):
        going = going[questions[going] > drafts]
        more = asked(policy, probability[going, :drafts])
        stopped[going[~more]] = True
        going = going[more]
        proposed[going] += most[going] > drafts
    return proposed, proposed - (drops & stopped & (proposed > 0))


def _walked(trace: xr.Dataset, made: dict[str, np.ndarray]) -> np.ndarray:
    """Which of the rounds are run, in order: each begins where the one before it ended."""
    known = ~made["unknown"]
    step = np.zeros(trace.sizes["token"], dtype=np.int64)
    step[made["row"][known]] = made["emitted"][known]
    steps, ends = step.tolist(), np.cumsum(trace["length"].values)
    taken = []
    for row, end in zip((ends - trace["length"].values + trace["begin"].values).tolist(), ends.tolist(), strict=True):
        while row < end and steps[row]:
            taken.append(row)
            row += steps[row]
    return np.searchsorted(made["row"], np.array(taken, dtype=np.int64))


def _columns(trace: xr.Dataset, made: dict[str, np.ndarray], depth: int) -> dict[str, Any]:
    """All variables of the ledger."""
    row, text = made["row"], trace["text"].values[made["row"]]
    prompt = (np.cumsum(trace["start"].values == 0) - 1)[text]  # windows of a text follow it
    place = np.arange(1, depth + 1)
    read = np.minimum(row[:, None] + place, trace.sizes["token"] - 1)
    drafted, tested = (place <= made[name][:, None] for name in ("drafted", "tested"))
    return {
        **made,
        "prompt": prompt,
        "label": trace["label"].values[text],
        "number": np.arange(len(row)) - np.searchsorted(prompt, prompt),
        "begin": (trace["start"].values[text] + trace["position"].values[row] + 1),
        "agreed": np.full(len(row), NONE),
        "next_token": np.where(made["emitted"] > made["accepted"], trace["token"].values[row + made["emitted"]], NONE),
        "seconds": np.full(len(row), np.nan),
        "draft_token": np.where(drafted, trace["draft_token"].values[row, :depth], NONE),
        "draft_probability": np.where(drafted, trace["draft_probability"].values[row, :depth], np.nan),
        "target_token": np.where(tested, trace["token"].values[read], NONE),
        "target_probability": np.where(tested, trace["target_probability"].values[row, :depth], np.nan),
        "target_entropy": np.where(tested, trace["target_entropy"].values[read - 1], np.nan),
    }
