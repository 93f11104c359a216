"""Read and check a ledger of rounds, the input of every acceptance rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, InconsistentRecording, NothingMeasured
from qwenlab.record.recording import Recording
from qwenlab.stats.base.source import Source, read

FACTS = ("rule", "depth", "policy", "text", "origin")
"""Attrs of a ledger that its rates depend on."""

_COUNTS = ("proposed", "drafted", "tested", "accepted", "agreed", "emitted", "ended")
_NEEDS = ("prompt", "label", "begin", *_COUNTS, "draft_token", "target_token")
_ENDS = ("rejected", "full", "eos", "length")
_AGAIN = "Make the ledger again; do not edit or cut one of its variables."


def read_rounds(source: Source, *more: str) -> xr.Dataset:
    """Read the node "rounds" and check it round by round; `more` names variables needed besides the counts.

    Raises NothingMeasured for a ledger without rounds, and InconsistentRecording.
    """
    data = read(source, "rounds", *_NEEDS, *more)
    if missing := [name for name in FACTS if name not in data.attrs]:
        raise InconsistentRecording(
            f"This ledger lacks the attributes {', '.join(missing)}, on which its rates depend.\n"
            f"Set ledger.attrs: {', '.join(FACTS)}; qwenlab.speculative.generate does."
        )
    if not data.sizes["round"]:
        raise NothingMeasured(
            "This ledger has no rounds: every text ended with its first token.\n"
            "Decode more prompts, or with a larger max_new_tokens."
        )
    depth, drafts = int(data.attrs["depth"]), data["draft"].values.tolist()
    if not any(drafts[:depth] == list(range(first, first + depth)) for first in (0, 1)):
        raise InconsistentRecording(f"The drafts of this ledger are {drafts}, not 1 to its depth, {depth}.\n{_AGAIN}")
    data = data.isel(draft=slice(depth)).assign_coords(draft=np.arange(1, depth + 1))
    _check_counts(data)
    _check_identity(data)
    return data


def several(sources: Source | Sequence[Source]) -> list[xr.Dataset]:
    """Read and check ledgers of different depths under one rule, on texts of one kind, the shallowest first.

    Raises BadArgument if two have the same depth, or differ in rule, text or temperature.
    """
    listed = [sources] if isinstance(sources, Recording | xr.Dataset) else list(sources)
    if not listed:
        raise BadArgument("No ledgers: give one Recording or ledger per depth.")
    ledgers = sorted((read_rounds(source) for source in listed), key=lambda ledger: int(ledger.attrs["depth"]))
    depths = [int(ledger.attrs["depth"]) for ledger in ledgers]
    if len(set(depths)) < len(depths):
        raise BadArgument(
            f"The ledgers have depths {depths}: give one ledger per depth.\nCompare other differences side by side."
        )
    for name in ("rule", "text", "temperature"):
        values = {str(ledger.attrs.get(name)) for ledger in ledgers}
        if len(values) > 1:
            raise BadArgument(
                f"The ledgers differ in their {name}: {', '.join(sorted(values))}.\n"
                "Give ledgers that differ in depth only."
            )
    return ledgers


def about(data: xr.Dataset) -> dict[str, Any]:
    """Attrs of every rate: rule, depth, policy, text, origin, and the numbers of rounds and prompts."""
    facts = {name: data.attrs[name] for name in FACTS}
    return facts | {"rounds": data.sizes["round"], "prompts": len(np.unique(data["prompt"].values))}


def about_all(ledgers: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Attrs of rates over several ledgers: values that differ are joined to one text."""
    facts = [about(ledger) for ledger in ledgers]
    if len(facts) == 1:
        return facts[0]
    texts = {name: [str(fact[name]) for fact in facts] for name in facts[0]}
    return {name: words[0] if len(set(words)) == 1 else ", ".join(words) for name, words in texts.items()}


def by_place(counts: xr.DataArray, depth: int) -> np.ndarray:
    """Expand a count per round (drafted, tested, accepted ...) to one bool per draft: [round, draft]."""
    return np.asarray(counts.values[:, None] >= np.arange(1, depth + 1))


def _check_counts(data: xr.Dataset) -> None:
    """Raise InconsistentRecording for the first round whose counts contradict each other."""
    depth = data.sizes["draft"]
    proposed, drafted, tested, accepted, agreed, emitted, ended = (data[name].values for name in _COUNTS)
    ended = ended.astype(str)
    drafts, targets = data["draft_token"].values, data["target_token"].values
    taken = by_place(data["accepted"], depth)
    wrong = {
        f"ended is not one of {', '.join(_ENDS)}": ~np.isin(ended, _ENDS),
        f"drafted is over {depth}, the depth": drafted > depth,
        "drafted > proposed": drafted > proposed,
        "tested > drafted": tested > drafted,
        "accepted > tested": accepted > tested,
        "tested > accepted + 1, though a rejection ends the round": tested > accepted + 1,
        "agreed is neither accepted or more, up to drafted, nor -1": (agreed != -1)
        & ((agreed < accepted) | (agreed > drafted)),
        "emitted is not 1 to accepted + 1": (emitted < 1) | (emitted > accepted + 1),
        "ended 'rejected', yet no draft was tested and not accepted": (ended == "rejected") & (tested == accepted),
        "ended 'full', yet not every draft was accepted": (ended == "full") & (accepted != drafted),
        "a draft given to the target model has no token": (by_place(data["drafted"], depth) & (drafts < 0)).any(axis=1),
    }
    if data.attrs["rule"] == "greedy":
        wrong["accepted a draft that is not the target model's token, under the rule greedy"] = (
            taken & (drafts != targets)
        ).any(axis=1)
    for what, where in wrong.items():
        if where.any():
            place = int(where.argmax())
            counts = ", ".join(f"{name} {data[name].values[place]}" for name in _COUNTS)
            raise InconsistentRecording(
                f"Round {place} (prompt {data['prompt'].values[place]}): {what} ({counts}); "
                f"{int(where.sum()):,} rounds of {len(where):,} are like it.\n{_AGAIN}"
            )


def _check_identity(data: xr.Dataset) -> None:
    """Check that acceptance length = 1 + sum over i of accepted_i / rounds, over the untruncated rounds.

    No round emits more than accepted + 1, so the sums are equal only if every untruncated round emitted that many.
    """
    whole = data.isel(round=np.flatnonzero(np.isin(data["ended"].values.astype(str), ("rejected", "full"))))
    rounds = whole.sizes["round"]
    if not rounds:
        return
    length = float(whole["emitted"].mean())
    accepted = by_place(whole["accepted"], data.sizes["draft"]).sum(axis=0) / rounds
    if not np.isclose(length, 1 + accepted.sum(), rtol=0, atol=1e-9):
        raise InconsistentRecording(
            f"The {rounds:,} untruncated rounds emitted {length:.6f} tokens each, but 1 + the accepted by place is "
            f"{1 + accepted.sum():.6f} (1 + {' + '.join(f'{share:.4f}' for share in accepted)}).\n{_AGAIN}"
        )
