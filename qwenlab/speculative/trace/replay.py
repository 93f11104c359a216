"""Replay a trace: the rounds that decoding would run along its texts, for any depth and policy, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qwenlab.speculative.policies import Policy, call_policy, policy_name
from qwenlab.speculative.rounds import NONE, ledger_from_columns


def replay_ledger(trace: xr.Dataset, *, depth: int, policy: Policy | None) -> xr.Dataset:
    """The ledger that `generate` would return along the traced texts, of at most `depth` drafts per round."""
    rounds = _rounds_at_every_row(trace, depth, policy)
    selected = _select_rounds(trace, rounds)
    columns = _columns(trace, {name: values[selected] for name, values in rounds.items()}, depth)
    attrs = {"rule": "greedy", "depth": depth, "policy": policy_name(policy), "drafting": "greedy", "temperature": 0.0}
    attrs |= {"top_k": 0, "top_p": 1.0, "rollback": "none", "origin": "replay"}
    attrs |= {name: trace.attrs[name] for name in ("text", "hidden") if name in trace.attrs}
    return ledger_from_columns(columns, attrs)


def _rounds_at_every_row(trace: xr.Dataset, depth: int, policy: Policy | None) -> dict[str, np.ndarray]:
    """Counts [row] of the round that would begin at each row t, which accepts the drafts k that are x[t + k]."""
    length, begin, limit = (trace[name].values for name in ("length", "begin", "limit"))
    text, position = trace["text"].values, trace["position"].values
    row = np.flatnonzero((position >= begin[text]) & (position < length[text] - 1))
    text, position = text[row], position[row]
    left = length[text] - 1 - position  # tokens of the text after the newest one
    most = np.where(limit < 0, length, limit)[text] - 1 - position  # tokens that may be emitted
    probability = trace["draft_probability"].values[row, :depth].astype(np.float64)
    proposed, drafted = _count_drafts(probability, np.clip(most - 1, 0, depth), policy)

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
        "unknown": to_the_end & ~eos,  # a text without an end: the token that the target model adds is not known
    }


def _count_drafts(probability: np.ndarray, most: np.ndarray, policy: Policy | None) -> tuple[np.ndarray, np.ndarray]:
    """Drafts made, and drafts verified, in each round [round] of at most `most` drafts."""
    if policy is None:
        return most, most
    drops = bool(getattr(policy, "drops", False))
    calls = np.where(most > 0, most + drops, 0)  # a policy that drops is called after the last draft too
    proposed, stopped = np.zeros_like(most), np.zeros(len(most), dtype=bool)
    going = np.arange(len(most))
    for drafts in range(calls.max(initial=0)):
        going = going[calls[going] > drafts]
        more = call_policy(policy, probability[going, :drafts])
        stopped[going[~more]] = True
        going = going[more]
        proposed[going] += most[going] > drafts
    return proposed, proposed - (drops & stopped & (proposed > 0))


def _select_rounds(trace: xr.Dataset, rounds: dict[str, np.ndarray]) -> np.ndarray:
    """Indices of the rounds that decoding runs, in order: each begins where the one before it ended."""
    known = ~rounds["unknown"]
    step = np.zeros(trace.sizes["token"], dtype=np.int64)
    step[rounds["row"][known]] = rounds["emitted"][known]
    steps, ends = step.tolist(), np.cumsum(trace["length"].values)
    selected = []
    for row, end in zip((ends - trace["length"].values + trace["begin"].values).tolist(), ends.tolist(), strict=True):
        while row < end and steps[row]:
            selected.append(row)
            row += steps[row]
    return np.searchsorted(rounds["row"], np.array(selected, dtype=np.int64))


def _columns(trace: xr.Dataset, rounds: dict[str, np.ndarray], depth: int) -> dict[str, Any]:
    """Values of all variables of the ledger."""
    row, text = rounds["row"], trace["text"].values[rounds["row"]]
    prompt = (np.cumsum(trace["start"].values == 0) - 1)[text]  # windows of one text are one prompt
    place = np.arange(1, depth + 1)
    read = np.minimum(row[:, None] + place, trace.sizes["token"] - 1)
    added = rounds["emitted"] > rounds["accepted"]
    drafted, tested = (place <= rounds[name][:, None] for name in ("drafted", "tested"))
    return {
        **rounds,
        "prompt": prompt,
        "label": trace["label"].values[text],
        "number": np.arange(len(row)) - np.searchsorted(prompt, prompt),
        "begin": (trace["start"].values[text] + trace["position"].values[row] + 1),
        "agreed": np.full(len(row), NONE),
        "next_token": np.where(added, trace["token"].values[row + rounds["emitted"]], NONE),
        "seconds": np.full(len(row), np.nan),
        "draft_token": np.where(drafted, trace["draft_token"].values[row, :depth], NONE),
        "draft_probability": np.where(drafted, trace["draft_probability"].values[row, :depth], np.nan),
        "target_token": np.where(tested, trace["token"].values[read], NONE),
        "target_probability": np.where(tested, trace["target_probability"].values[row, :depth], np.nan),
        "target_entropy": np.where(tested, trace["target_entropy"].values[read - 1], np.nan),
    }
