"""A ledger of rounds, read and checked: what every rate of acceptance begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, InconsistentRecording, NothingMeasured
from qwenlab.record.recording import Recording
from qwenlab.stats.base.source import Source, bounds, check_level, described, read
from qwenlab.stats.formulas.resampling import percentile_interval

_NEEDS = (
    *("prompt", "label", "begin", "proposed", "drafted", "tested", "accepted", "agreed", "emitted", "ended"),
    *("draft_token", "target_token"),
)
_SAID = ("rule", "depth", "policy", "text", "origin")
_ENDS = ("rejected", "full", "eos", "length")
_AGAIN = "Make the ledger again; do not edit or cut one of its variables."


def read_rounds(source: Source, *more: str) -> xr.Dataset:
    """Node "rounds", checked round by round; `more` are variables needed besides the counts.

    Raises NothingMeasured for a ledger of no rounds, and InconsistentRecording where it does not say what its rates
    depend on (rule, depth, policy, text, origin), where a round's counts cannot be, and where the acceptance length of
    the untruncated rounds is not 1 + sum over i of accepted_i / rounds.
    """
    data = read(source, "rounds", *_NEEDS, *more)
    if silent := [name for name in _SAID if name not in data.attrs]:
        raise InconsistentRecording(
            f"This ledger does not say its {', '.join(silent)}, and its rates depend on that.\n"
            f"Set ledger.attrs: {', '.join(_SAID)}; qwenlab.speculative.generate does."
        )
    if not data.sizes["round"]:
        raise NothingMeasured(
            "This ledger holds no round: every text ended with its first token.\n"
            "Decode more prompts, or with a larger max_new_tokens."
        )
    depth, found = int(data.attrs["depth"]), data["draft"].values.tolist()
    if not any(found[:depth] == list(range(first, first + depth)) for first in (0, 1)):
        raise InconsistentRecording(f"The drafts of this ledger are {found}, not 1 to {depth}, its depth.\n{_AGAIN}")
    data = data.isel(draft=slice(depth)).assign_coords(draft=np.arange(1, depth + 1))
    _check_counts(data)
    _check_identity(data)
    return data


def several(sources: Source | Sequence[Source]) -> list[xr.Dataset]:
    """Ledgers of different depths under one rule, on texts of one kind: checked, the shallowest first.

    Raises BadArgument where two have the same depth, or differ in what else their rates depend on.
    """
    given = [sources] if isinstance(sources, Recording | xr.Dataset) else list(sources)
    if not given:
        raise BadArgument("No ledgers: give one Recording, or ledger, for each depth.")
    ledgers = sorted((read_rounds(source) for source in given), key=lambda ledger: int(ledger.attrs["depth"]))
    depths = [int(ledger.attrs["depth"]) for ledger in ledgers]
    if len(set(depths)) < len(depths):
        raise BadArgument(
            f"The ledgers have depths {depths}: one each.\nCompare what else differs side by side instead."
        )
    for name in ("rule", "text", "temperature"):
        found = {str(ledger.attrs.get(name)) for ledger in ledgers}
        if len(found) > 1:
            raise BadArgument(
                f"The ledgers differ in their {name}: {', '.join(sorted(found))}.\nAlong depth, compare like with like."
            )
    return ledgers


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentile bootstrap of `resamples` draws of whole prompts; raises BadArgument.

    drawn  what prompts are called where they are something else
    """

    level: float
    resamples: int
    seed: int
    drawn: str = "prompts"

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.resamples < 1:
            raise BadArgument(f"resamples={self.resamples!r}: give how many bootstrap draws to make, such as 2000.")

    def interval(self, sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Low and high [value, bound] of what `of` makes of sums [prompt, column]."""
        return percentile_interval(sums, of, level=self.level, resamples=self.resamples, seed=self.seed)

    @property
    def attrs(self) -> dict[str, Any]:
        """What an interval says of itself."""
        return {
            "interval": f"percentile bootstrap of whole {self.drawn}",
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def about(data: xr.Dataset) -> dict[str, Any]:
    """What a rate is never told without: rule, depth, policy, text, origin, and the rounds and prompts it is of."""
    facts = {name: data.attrs[name] for name in _SAID}
    return facts | {"rounds": data.sizes["round"], "prompts": len(np.unique(data["prompt"].values))}


def about_all(ledgers: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The same of ledgers side by side: in words, what differs between them."""
    facts = [about(ledger) for ledger in ledgers]
    if len(facts) == 1:
        return facts[0]
    texts = {name: [str(each[name]) for each in facts] for name in facts[0]}
    return {name: words[0] if len(set(words)) == 1 else ", ".join(words) for name, words in texts.items()}


def said(
    values: np.ndarray, dims: Sequence[str], units: str, means: str, say: dict[str, Any], **more: Any
) -> xr.DataArray:
    """A variable that says what it is and depends on; the leading axis of values is dropped if dims do not name it."""
    return described(
        xr.DataArray(values if values.ndim == len(dims) else values[0], dims=dims), units, means, **say, **more
    )


def bootstrap(
    name: str,
    values: np.ndarray,
    ends: np.ndarray,
    dims: Sequence[str],
    units: str,
    means: str,
    say: dict[str, Any],
    how: Bootstrap,
) -> dict[str, xr.DataArray]:
    """A rate and its interval: {name: ..., name_interval: ...}, from values and ends [..., bound]."""
    interval = bounds(said(ends, (*dims, "bound"), units, f"{means}, interval", say, **how.attrs))
    return {name: said(values, dims, units, means, say), f"{name}_interval": interval}


def places(counts: xr.DataArray, depth: int) -> np.ndarray:
    """Of each round, whether its count reaches the draft: bool [round, draft], from how many it drafted, tested, ..."""
    return np.asarray(counts.values[:, None] >= np.arange(1, depth + 1))


def _check_counts(data: xr.Dataset) -> None:
    """Refuse the first round whose counts cannot be."""
    depth = data.sizes["draft"]
    proposed, drafted, tested, accepted, agreed, emitted = (
        data[name].values for name in ("proposed", "drafted", "tested", "accepted", "agreed", "emitted")
    )
    ended = data["ended"].values.astype(str)
    drafts, targets = data["draft_token"].values, data["target_token"].values
    taken = places(data["accepted"], depth)
    wrong = {
        f"ended is none of {', '.join(_ENDS)}": ~np.isin(ended, _ENDS),
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
        "a draft given to the main model has no token": (places(data["drafted"], depth) & (drafts < 0)).any(axis=1),
    }
    if data.attrs["rule"] == "greedy":
        wrong["accepted a draft that is not the main model's token, under the rule greedy"] = (
            taken & (drafts != targets)
        ).any(axis=1)
    for what, where in wrong.items():
        if where.any():
            place = int(where.argmax())
            counts = ", ".join(f"{name} {data[name].values[place]}" for name in _NEEDS[3:-2])
            raise InconsistentRecording(
                f"Round {place} (prompt {data['prompt'].values[place]}): {what} ({counts}); "
                f"{int(where.sum()):,} rounds of {len(where):,} are like it.\n{_AGAIN}"
            )


def _check_identity(data: xr.Dataset) -> None:
    """Acceptance length = 1 + sum over i of accepted_i / rounds, over the rounds that nothing cut.

    No round emits more than accepted + 1, so that the sums are equal only where every such round emitted as many.
    """
    whole = data.isel(round=np.flatnonzero(np.isin(data["ended"].values.astype(str), ("rejected", "full"))))
    rounds = whole.sizes["round"]
    if not rounds:
        return
    length = float(whole["emitted"].mean())
    by_place = places(whole["accepted"], data.sizes["draft"]).sum(axis=0) / rounds
    if not np.isclose(length, 1 + by_place.sum(), rtol=0, atol=1e-9):
        raise InconsistentRecording(
            f"The {rounds:,} untruncated rounds emitted {length:.6f} tokens each, but 1 + the accepted by place is "
            f"{1 + by_place.sum():.6f} (1 + {' + '.join(f'{share:.4f}' for share in by_place)}).\n{_AGAIN}"
        )
